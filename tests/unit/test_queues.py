"""The names of our queues, and their old names."""

from __future__ import annotations

import pytest
from celery import Celery
from celery.exceptions import QueueNotFound
from kombu import Queue
from kombu.transport.native_delayed_delivery import calculate_routing_key

from cdc_tasks.broker.queues import own_queues, queue_name, queue_of_key
from cdc_tasks.settings import BrokerSettings, SettingsError, load


def _app(*more: str) -> Celery:
    app = Celery("tests", amqp="cdc_tasks.broker.queues:AMQP", set_as_current=False)
    names = ("celery", "cdc_notifications", "cdc_cache", "cdc_bulk", *more)
    app.conf.update(
        task_queues=[Queue(name, routing_key=name) for name in names], task_create_missing_queues=False
    )
    return app


@pytest.mark.parametrize(
    ("prefix", "why"),
    [("my team_", "not allowed"), ("cdc.", "not have a dot"), ("a" * 65, "too long"), ("q#", "not allowed")],
)
def test_a_prefix_that_makes_no_good_names_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch, prefix: str, why: str
) -> None:
    monkeypatch.setenv("CDC_QUEUE_PREFIX", prefix)
    with pytest.raises(SettingsError, match=f"CDC_QUEUE_PREFIX=.*{why}"):
        load(BrokerSettings)


def test_names_begin_with_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDC_QUEUE_PREFIX", "team-a_")
    assert queue_name("cache") == "team-a_cache"


def test_an_old_name_means_the_queue_that_has_its_place() -> None:
    queues = _app().amqp.queues
    assert queues["bulk"].name == "cdc_bulk"
    queues.select(["cache", "celery"])
    assert set(queues.consume_from) == {"cdc_cache", "celery"}
    queues.deselect("cache")
    assert set(queues.consume_from) == {"celery"}
    assert queues.asked_by_old_name == {"bulk": "cdc_bulk", "cache": "cdc_cache"}


def test_a_queue_of_the_settings_keeps_its_name() -> None:
    queues = _app("bulk").amqp.queues
    assert queues["bulk"].name == "bulk"
    assert not queues.asked_by_old_name


def test_any_other_name_is_still_an_error() -> None:
    with pytest.raises(QueueNotFound):
        _app().amqp.router.route({"queue": "balk"}, "tests.task")


@pytest.mark.parametrize(
    ("key", "queue"),
    [
        ("cdc_bulk", "cdc_bulk"),
        (calculate_routing_key(1, "cdc_bulk"), "cdc_bulk"),
        ("bulk", "cdc_bulk"),
        (calculate_routing_key(7, "bulk"), "cdc_bulk"),
        ("0.1.bulk", None),
        ("somebody.else", None),
        (None, None),
        (7, None),
    ],
)
def test_a_message_tells_its_queue_by_its_routing_key(key: object, queue: str | None) -> None:
    assert queue_of_key(_app(), key) == queue


def test_celerys_default_queue_is_ours_only_if_it_is_needed() -> None:
    app = _app()
    assert own_queues(app) == ["cdc_notifications", "cdc_cache", "cdc_bulk"]
    assert own_queues(app, {"celery": {"tests.task"}})[0] == "celery"
