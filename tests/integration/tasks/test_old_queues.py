"""Queues with our old names: their tasks run, and other applications' messages are left there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from kombu import Exchange, Queue

from cdc_tasks.broker.rabbitmq.queues import existing_queue
from harness.waiting import wait_until
from harness.worker import Worker
from tests.integration.tasks.test_rabbitmq import sender_of
from tests.support.operators import Operator
from tests.support.rabbitmq import QUORUM, drain, open_channel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.machine_servers import RabbitMQServer
    from tests.support.helpdesk import HelpDesk

_OLD = ("notifications", "cache", "bulk")


@pytest.fixture
def environment(helpdesk: HelpDesk) -> dict[str, str]:
    modules = "tests.support.tasks.killed,tests.support.tasks.faulty"
    return {**helpdesk.environment, "CDC_TASK_MODULES": modules}


@pytest.fixture
def on_rabbitmq(environment: dict[str, str], rabbitmq_server: RabbitMQServer) -> Iterator[dict[str, str]]:
    yield {**environment, "CELERY_BROKER_URL": rabbitmq_server.url}
    with open_channel(rabbitmq_server) as channel:
        for name in (*_OLD, "cdc_notifications", "cdc_cache", "cdc_bulk"):
            channel.queue_delete(name)


def _noted(helpdesk: HelpDesk) -> dict[int, int]:
    found: dict[Any, Any] = helpdesk.broker.cache.hgetall("noted")
    return {int(number): int(times) for number, times in found.items()}


def _old_queues(server: RabbitMQServer) -> None:
    """Make the queues and bindings of version 0.1."""
    with open_channel(server) as channel:
        channel.exchange_declare("cdc_tasks", "topic", durable=True, auto_delete=False)
        for name in _OLD:
            channel.queue_declare(name, durable=True, auto_delete=False, arguments=QUORUM)
            channel.queue_bind(name, "cdc_tasks", name)
            channel.queue_bind(name, "cdc_tasks", f"#.{name}")


def _send_to_old(url: str, task: str, *arguments: Any, queue: str, **options: Any) -> None:
    """Send a task as version 0.1 did on RabbitMQ."""
    old = Queue(queue, Exchange("cdc_tasks", type="topic"), routing_key=queue, queue_arguments=QUORUM)
    with Celery("tests", broker=url, set_as_current=False) as app:
        app.send_task(task, arguments, queue=old, **options)


def test_what_waits_in_old_queues_of_rabbitmq_runs_once(
    helpdesk: HelpDesk, on_rabbitmq: dict[str, str], rabbitmq_server: RabbitMQServer
) -> None:
    _old_queues(rabbitmq_server)
    url = on_rabbitmq["CELERY_BROKER_URL"]
    for number, queue in enumerate(_OLD):
        _send_to_old(url, "killed.note", number, queue=queue)
    with Worker(on_rabbitmq) as worker, sender_of(on_rabbitmq) as sender:
        wait_until(lambda: len(_noted(helpdesk)) == 3, timeout=40, what="the old messages")
        sender.send_task("killed.note", [3], queue="cdc_bulk")
        sender.send_task("killed.note", [4], queue="cdc_bulk", countdown=1)  # the broker keeps it
        _send_to_old(url, "killed.note", 5, queue="bulk")  # a listener of the old version still runs
        wait_until(lambda: len(_noted(helpdesk)) == 6, timeout=40, what="the new messages")
        assert sorted(line["queue"] for line in worker.events("old_queue_drained")) == sorted(_OLD)
        assert {line["now"] for line in worker.events("old_queue_drained")} == {
            "cdc_notifications",
            "cdc_cache",
            "cdc_bulk",
        }
        assert worker.stop() == 0
    assert set(_noted(helpdesk).values()) == {1}


def test_a_worker_that_is_told_the_old_name_takes_from_both_and_says_the_new_one(
    helpdesk: HelpDesk, on_rabbitmq: dict[str, str], rabbitmq_server: RabbitMQServer
) -> None:
    _old_queues(rabbitmq_server)
    _send_to_old(on_rabbitmq["CELERY_BROKER_URL"], "killed.note", 1, queue="bulk")
    with Worker(on_rabbitmq, "-Q", "bulk") as worker, sender_of(on_rabbitmq) as sender:
        sender.send_task("killed.note", [2], queue="cdc_bulk")
        wait_until(lambda: len(_noted(helpdesk)) == 2, timeout=40, what="both messages")
        [line] = worker.events("queue_has_a_new_name")
        assert (line["queue"], line["now"], line["level"]) == ("bulk", "cdc_bulk", "warning")
        assert [line["queue"] for line in worker.events("old_queue_drained")] == ["bulk"]


def test_no_old_queue_is_made(on_rabbitmq: dict[str, str], rabbitmq_server: RabbitMQServer) -> None:
    with Worker(on_rabbitmq) as worker:
        with open_channel(rabbitmq_server) as channel:
            assert [existing_queue(channel.connection, name) for name in _OLD] == [None, None, None]
        assert not worker.events("old_queue_drained")


def test_a_queue_of_others_with_an_old_name_is_left_to_them(
    helpdesk: HelpDesk, on_rabbitmq: dict[str, str], rabbitmq_server: RabbitMQServer
) -> None:
    """One queue has another application's message when we start, one gets it later."""
    url = on_rabbitmq["CELERY_BROKER_URL"]
    with open_channel(rabbitmq_server) as channel:
        for name in ("notifications", "cache"):
            channel.queue_declare(name, durable=True, auto_delete=False)
    with Celery("house", broker=url, set_as_current=False) as house:
        house.send_task("house.note", [1], queue="notifications")
        with Worker(on_rabbitmq) as worker, sender_of(on_rabbitmq) as sender:
            house.send_task("house.note", [2], queue="cache")
            wait_until(lambda: len(worker.events("old_queue_left")) == 2, timeout=40, what="both to be left")
            sender.send_task("killed.note", [3], queue="cdc_cache")
            wait_until(lambda: _noted(helpdesk) == {3: 1}, timeout=40, what="our message")
            assert not worker.events("task_gave_up")
            assert worker.stop() == 0
    for number, queue in enumerate(("notifications", "cache"), start=1):
        [message] = drain(rabbitmq_server, queue)
        assert message["body"][0] == [number]


def test_a_retry_of_a_task_goes_to_the_queue_that_it_came_from(
    on_rabbitmq: dict[str, str], rabbitmq_server: RabbitMQServer
) -> None:
    _old_queues(rabbitmq_server)
    _send_to_old(on_rabbitmq["CELERY_BROKER_URL"], "faulty.retries_out", queue="bulk")
    with Worker(on_rabbitmq, "-Q", "cdc_bulk") as worker:
        [line] = wait_until(lambda: worker.events("task_gave_up"), timeout=40, what="the last try")
        assert line["tries"] == 3


def test_what_waits_in_old_queues_of_redis_runs_once(helpdesk: HelpDesk, environment: dict[str, str]) -> None:
    for number, queue in enumerate(_OLD):
        helpdesk.send("killed.note", number, queue=queue)
    with Worker(environment) as worker:
        wait_until(lambda: len(_noted(helpdesk)) == 3, timeout=40, what="the old messages")
        helpdesk.send("killed.note", 3, queue="bulk")  # a listener of the old version still runs
        helpdesk.send("killed.note", 4, queue="cdc_bulk")
        wait_until(lambda: len(_noted(helpdesk)) == 5, timeout=40, what="the new messages")
        assert sorted(line["queue"] for line in worker.events("old_queue_drained")) == sorted(_OLD)
        assert worker.stop() == 0
    assert set(_noted(helpdesk).values()) == {1}
    assert not any(helpdesk.broker.client.llen(name) for name in _OLD)


def test_what_comes_to_an_old_queue_of_redis_while_a_worker_runs_is_done(
    helpdesk: HelpDesk, environment: dict[str, str]
) -> None:
    """An expired lease or a listener of the old version puts it there."""
    with Worker(environment, "-Q", "cdc_bulk") as worker:
        assert not worker.events("old_queue_drained")
        helpdesk.send("killed.note", 1, queue="bulk")
        wait_until(lambda: _noted(helpdesk) == {1: 1}, timeout=40, what="the message")


def test_lists_of_others_in_redis_with_old_names_are_left_to_them(
    helpdesk: HelpDesk, environment: dict[str, str]
) -> None:
    client = helpdesk.broker.client
    client.rpush("bulk", "what their own code reads")
    client.hset("cache", "no", "list")
    helpdesk.send("house.note", 1, queue="notifications")
    with Worker(environment) as worker:
        helpdesk.send("killed.note", 2, queue="cdc_bulk")
        wait_until(lambda: _noted(helpdesk) == {2: 1}, timeout=40, what="our message")
        wait_until(lambda: worker.events("old_queue_left"), timeout=40, what="the line about the queue")
        assert [line["queue"] for line in worker.events("old_queue_left")] == ["notifications"]
        assert worker.stop() == 0
    assert client.lrange("bulk", 0, -1) == [b"what their own code reads"]
    [message] = client.lrange("notifications", 0, -1)
    assert json.loads(message)["headers"]["task"] == "house.note"


def test_a_worker_without_tasks_of_its_own_leaves_celerys_default_queue_alone(helpdesk: HelpDesk) -> None:
    helpdesk.send("house.note", 1, queue="celery")
    with Worker(helpdesk.environment) as worker:
        helpdesk.send("cdc_tasks.refresh_master_cache", "roles", queue="cdc_cache")
        wait_until(lambda: worker.events("master_cache_refreshed"), timeout=40, what="our task")
        assert worker.stop() == 0
    assert helpdesk.broker.client.llen("celery") == 1


def test_a_route_with_an_old_name_sends_to_the_queue_that_has_its_place(helpdesk: HelpDesk) -> None:
    operator = Operator(**helpdesk.environment, CDC_ROUTES="tests.support.routes.refused:by_old_name")
    findings = {each["what"]: each for each in operator.asks("check")["findings"]}
    assert findings["route to tests.task"]["state"] == "warning"
    assert "cdc_bulk" in findings["route to tests.task"]["hint"]
