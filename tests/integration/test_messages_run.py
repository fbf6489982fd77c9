"""A worker that knows nothing of the listener takes its messages for Celery's own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from harness.waiting import wait_until
from harness.worker import Worker, unacknowledged
from tests.support.publishing import celery_app, change, changes, fire, position, redis_publisher, router_to

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Broker


@pytest.fixture
def worker(broker: Broker) -> Iterator[Worker]:
    environment = {
        "CELERY_BROKER_URL": broker.url,
        "CACHE_URL": broker.cache_url,
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
        "CDC_TASK_MODULES": "tests.support.tasks.probe",
    }
    with Worker(environment) as running:
        yield running


def _records(broker: Broker, count: int) -> list[dict[str, Any]]:
    wait_until(lambda: broker.cache.llen("ran") >= count, what=f"{count} tasks to run", timeout=30)
    return [json.loads(record) for record in broker.cache.lrange("ran", 0, -1)]


def _publish(broker: Broker, task: str, last: int, **options: Any) -> None:
    with redis_publisher(broker.url) as publisher:
        publisher.publish(fire(router_to(task, **options), changes(1, last)), checkpoint=position(last))


def test_a_worker_runs_them_with_their_arguments(broker: Broker, worker: Worker) -> None:
    row = {"title": "Ünïcode", "big": 2**64, "price": "12.30", "tags": ["a", None], "nothing": None}
    event = change(1, **row)
    with redis_publisher(broker.url) as publisher:
        publisher.publish(fire(router_to("probe.ran", queue="cdc_bulk"), [event]), checkpoint=event.position)
    (record,) = _records(broker, 1)
    assert record["argument"] == event.to_message()
    assert record["id"].startswith(event.id)
    assert (record["queue"], record["priority"]) == ("cdc_bulk", 0)
    wait_until(
        lambda: not any(event.id.encode() in taken for taken in unacknowledged(broker.client)),
        what="the message to be acknowledged",
    )


def test_a_task_can_be_retried(broker: Broker, worker: Worker) -> None:
    _publish(broker, "probe.ran_later", 3)
    records = _records(broker, 3)
    assert {record["retries"] for record in records} == {2}
    assert sorted(record["argument"]["after"]["id"] for record in records) == [1, 2, 3]


def test_celery_inspect_shows_which_change_a_task_is_about_and_nothing_of_its_row(
    broker: Broker, worker: Worker
) -> None:
    secret = change(1, password="secret")
    with redis_publisher(broker.url) as publisher:
        publisher.publish(fire(router_to("probe.waits"), [secret]), checkpoint=secret.position)
    app = celery_app(broker.url)

    def active() -> list[dict[str, Any]]:
        replies = app.control.inspect(timeout=2).active() or {}
        return [task for tasks in replies.values() for task in tasks if task["name"].startswith("probe.")]

    (task,) = wait_until(active, what="the task to be seen running", timeout=20)
    broker.cache.rpush("go", "1")
    assert task["name"] == "probe.waits"
    assert task["id"].startswith(secret.id)
    assert "secret" not in worker.log
    _records(broker, 1)


def test_revoking_by_the_tasks_id_works(broker: Broker, worker: Worker) -> None:
    router = router_to("probe.ran")
    task_id = f"{change(1).id}-{router.routes[0].id}"
    app = celery_app(broker.url)

    def is_known() -> bool:
        app.control.revoke([task_id])  # again and again: a worker that is just ready may not listen yet
        return task_id in str(app.control.inspect(timeout=2).revoked())

    wait_until(is_known, what="the worker to know it", timeout=20)
    with redis_publisher(broker.url) as publisher:
        publisher.publish(fire(router, changes(1, 2)), checkpoint=position(2))
    (record,) = _records(broker, 1)
    assert record["argument"]["after"]["id"] == 2
