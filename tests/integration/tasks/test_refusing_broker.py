"""A broker that takes no writes for a while: it is full, or has too few replicas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import redis

from harness.embedded_servers import ValkeyServer
from harness.waiting import wait_until
from harness.worker import Worker, unacknowledged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.helpdesk import HelpDesk


@pytest.fixture
def own_broker() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def worker(helpdesk: HelpDesk, own_broker: ValkeyServer) -> Iterator[Worker]:
    environment = {
        **helpdesk.environment,
        "CELERY_BROKER_URL": own_broker.url,
        "CELERY_CONFIG_MODULE": "tests.support.celery_settings.short_lease",
        "CDC_TASK_MODULES": "tests.support.tasks.killed",
    }
    with Worker(environment) as running:
        yield running


def test_a_full_broker_is_emptied_and_waited_at(
    helpdesk: HelpDesk, own_broker: ValkeyServer, worker: Worker
) -> None:
    with redis.Redis.from_url(own_broker.url) as client:
        _send(helpdesk, own_broker, 0, 1, 2, 3)
        wait_until(lambda: helpdesk.broker.cache.llen("begun") >= 2, what="tasks to run")
        client.config_set("maxmemory", 1)
        wait_until(lambda: _noted(helpdesk) == {0, 1, 2, 3}, timeout=20, what="the tasks to be done")
        wait_until(lambda: _refused_waits(client) >= 2, what="the idle worker to be refused its wait")
        client.config_set("maxmemory", 0)
        _send(helpdesk, own_broker, 4)
        wait_until(lambda: 4 in _noted(helpdesk), timeout=20, what="the next task")


def test_a_broker_that_refuses_acknowledgements_gets_its_worker_back(
    helpdesk: HelpDesk, own_broker: ValkeyServer, worker: Worker
) -> None:
    """Like a new master without a replica, if `min-replicas-to-write` requires one."""
    with redis.Redis.from_url(own_broker.url) as client:
        _send(helpdesk, own_broker, 0, 1, 2)
        wait_until(lambda: helpdesk.broker.cache.llen("begun") >= 2, what="tasks to run")
        client.config_set("min-replicas-to-write", 1)
        wait_until(lambda: "Connection to broker lost" in worker.log, timeout=20, what="the worker to notice")
        client.config_set("min-replicas-to-write", 0)
        wait_until(lambda: _noted(helpdesk) == {0, 1, 2}, timeout=20, what="all tasks")
        wait_until(lambda: not unacknowledged(client), timeout=20, what="all to be acknowledged")


def _send(helpdesk: HelpDesk, broker: ValkeyServer, *numbers: int) -> None:
    for number in numbers:
        helpdesk.send("killed.note_slowly", number, queue="cdc_bulk", broker_url=broker.url)


def _noted(helpdesk: HelpDesk) -> set[int]:
    return set(map(int, helpdesk.broker.cache.hkeys("noted")))


def _refused_waits(client: redis.Redis) -> int:
    return int(client.info("commandstats")["cmdstat_brpoplpush"]["rejected_calls"])
