"""Workers whose broker Sentinel names: they take tasks, die, and go on after a failover."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.embedded_servers import ValkeyServer
from harness.machine_servers import RedisServer
from harness.waiting import wait_until
from harness.worker import Worker, unacknowledged
from tests.support.sentinel import SentinelBroker
from tests.support.warm_python import WARM

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.helpdesk import HelpDesk

_CHECKOUT = Path(__file__).resolve().parents[3]


def test_a_worker_takes_tasks_from_the_master_and_what_it_holds_comes_back_when_it_is_killed(
    helpdesk: HelpDesk,
) -> None:
    with SentinelBroker() as broker:
        with Worker(_environment(helpdesk, broker)) as worker:
            broker.send("killed.note", 1)
            wait_until(lambda: _noted(helpdesk) == {1: 1}, what="a task to be done")
            wait_until(lambda: _unacknowledged(broker) == 0, what="it to be acknowledged")
            broker.client.hset("cdc:shop:parked", "an-id", "{}")
            assert _health(_environment(helpdesk, broker))["parked"] == 1
            broker.send("killed.note_slowly", 2)
            wait_until(lambda: helpdesk.broker.cache.llen("begun") == 1, what="a task to run")
            worker.kill()
        assert _unacknowledged(broker) == 1
        with Worker(_environment(helpdesk, broker)):
            wait_until(
                lambda: _noted(helpdesk) == {1: 1, 2: 1}, timeout=20, what="the task of the dead worker"
            )
            wait_until(lambda: _unacknowledged(broker) == 0, what="it to be acknowledged")


@pytest.mark.parametrize(
    ("server", "fail"),
    [
        pytest.param(ValkeyServer, SentinelBroker.fail_over, id="a master that is switched"),
        pytest.param(RedisServer, SentinelBroker.kill_master, id="a master that is killed"),
        pytest.param(ValkeyServer, SentinelBroker.pause_master, id="a master that hangs"),
    ],
)
def test_after_a_failover_every_task_that_the_replica_has_is_done_and_new_ones_are_taken(
    helpdesk: HelpDesk, server: type[ValkeyServer], fail: Callable[[SentinelBroker], None]
) -> None:
    """Queued tasks and running ones survive, and a process that has sent a task before sends another."""
    helpdesk.connect_slack(helpdesk.CARL, "C0CARL")
    with SentinelBroker(server=server) as broker, Worker(_environment(helpdesk, broker), concurrency=1):
        _send_ticket(helpdesk, broker)
        wait_until(lambda: len(helpdesk.social.posted) == 1, what="the first message")
        for number in range(2):
            broker.send("killed.note_slowly", number)
        wait_until(lambda: helpdesk.broker.cache.llen("begun"), what="a task to run")
        broker.wait_for_copies()
        fail(broker)
        broker.wait_for_new_master()
        _send_ticket(helpdesk, broker)
        wait_until(lambda: _noted(helpdesk).keys() == {0, 1}, timeout=40, what="all tasks")
        wait_until(lambda: len(helpdesk.social.posted) == 2, timeout=40, what="the next message")
        wait_until(lambda: _unacknowledged(broker) == 0, timeout=20, what="all to be acknowledged")


def _environment(helpdesk: HelpDesk, broker: SentinelBroker) -> dict[str, str]:
    """Return a worker's. Its cache is on another server: what fails over is the broker alone."""
    return {**helpdesk.environment, **broker.environment, "CDC_TASK_MODULES": "tests.support.tasks.killed"}


def _health(environment: dict[str, str]) -> dict[str, Any]:
    """Return what the health check says, which a worker has answered."""
    command = [sys.executable, "-m", "cdc_tasks", "health", "--json"]
    result = WARM.run(
        command,
        cwd=_CHECKOUT,
        env={**os.environ, **environment},
        check=True,
    )
    return json.loads(result.stdout)


def _send_ticket(helpdesk: HelpDesk, broker: SentinelBroker) -> None:
    insert = helpdesk.insert_ticket(assigned_to_id=helpdesk.CARL).to_message()
    broker.send("cdc_tasks.notify_ticket_insert", insert, queue="cdc_notifications")


def _unacknowledged(broker: SentinelBroker) -> int:
    """Return the number of unacknowledged messages on the master."""
    with broker.client as client:
        return len(unacknowledged(client))


def _noted(helpdesk: HelpDesk) -> dict[int, int]:
    found = helpdesk.broker.cache.hgetall("noted")
    return {int(number): int(times) for number, times in found.items()}
