"""Which workers of somebody else's app take tasks with a key on RabbitMQ: what `-Q` and `-X` say."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from kombu import Queue

from cdc_tasks import install
from cdc_tasks.broker.rabbitmq.partitions import added_partitions, partitions_of
from cdc_tasks.worker import added_partitions as of_worker


def _app(name: str = "shop", broker: str = "amqp://", *, has: tuple[str, ...] = (), **parts: bool) -> Celery:
    app = Celery(name, broker=broker, set_as_current=False)
    if has:
        app.conf.task_queues = [Queue(each) for each in has]
    return install(app, **parts)


def _chosen(app: Celery, *, only: str = "", without: str = "") -> tuple[list[str], bool]:
    """Return the queues that Celery takes from, and whether the worker takes tasks with a key."""
    of_worker.offer(app)
    app.amqp.queues.select(only.split(",") if only else [])
    app.amqp.queues.deselect(without.split(",") if without else [])
    of_worker.note_choice(app)
    return list(app.amqp.queues.consume_from), bool(of_worker._taken.get(app))


@pytest.mark.parametrize(
    ("options", "queues", "takes"),
    [
        ({}, ["celery", "mail"], True),
        ({"only": "mail"}, ["mail"], False),
        ({"only": "mail,cdc_shop_keyed"}, ["mail"], True),
        ({"only": "cdc_shop_keyed"}, [], True),
        ({"without": "cdc_shop_keyed"}, ["celery", "mail"], False),
        ({"without": "mail"}, ["celery"], True),
    ],
    ids=str,
)
def test_the_queue_that_stands_for_all_is_named_as_any_other(
    options: dict[str, str], queues: list[str], takes: bool
) -> None:
    app = _app(has=("celery", "mail"))
    assert _chosen(app, **options) == (queues, takes)
    assert list(app.amqp.queues) == ["celery", "mail"]


def test_no_queue_of_the_app_looks_like_one_that_keeps_retries() -> None:
    app = _app()
    assert len(partitions_of(app)) == 8
    assert list(app.amqp.queues) == ["celery"]


def test_each_app_has_queues_of_its_own_without_a_dot() -> None:
    """A dot would separate words of RabbitMQ's topics."""
    names = [added_partitions(_app(name))[1].name for name in ("shop", "my.shop", "__main__")]
    assert names == ["cdc_shop_keyed_0", "cdc_my-shop_keyed_0", "cdc___main___keyed_0"]


@pytest.mark.parametrize(
    "given",
    [{"broker": "redis://"}, *({part: False} for part in ("order_by_key", "transport", "dead_letters"))],
    ids=str,
)
def test_no_other_app_has_them(given: dict[str, Any]) -> None:
    app = _app(**given)
    assert not partitions_of(app)
    assert _chosen(app) == (["celery"], False)


def test_their_number_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDC_KEY_PARTITIONS", "3")
    monkeypatch.setenv("CELERY_BROKER_URL", "nonsense")  # which belongs to another program
    assert len(partitions_of(_app())) == 3
