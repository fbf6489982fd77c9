"""What workers hold on Redis: nobody else's is touched, and that of a dead worker is back soon, in its order."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import Celery

from tests.waiting import wait_until
from tests.worker import Worker, held

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpdesk import HelpDesk

_CHECKOUT = Path(__file__).resolve().parents[3]


@contextmanager
def stock_worker(helpdesk: HelpDesk) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "celery", "-A", "tests.stock_tasks", "worker", "-c2", "-Q", "house"]
    environment = {**os.environ, **helpdesk.environment}
    with subprocess.Popen(
        [*command, "-n", "stock@%h"], cwd=_CHECKOUT, env=environment, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def _environment(helpdesk: HelpDesk) -> dict[str, str]:
    return {
        **helpdesk.environment,
        "CDC_TASK_MODULES": "tests.killed_tasks",
        "CELERY_CONFIG_MODULE": "tests.short_lease",  # three seconds
    }


def test_the_task_of_a_stock_worker_runs_once_beside_ours(helpdesk: HelpDesk) -> None:
    """It takes longer than our lease, and stock workers renew nothing."""
    cache = helpdesk.broker.cache
    with Worker(_environment(helpdesk)), stock_worker(helpdesk):
        helpdesk.send("house.note", 1, 12, queue="house")
        wait_until(lambda: cache.hexists("house begun", "1"), timeout=60, what="the stock worker to begin")
        assert helpdesk.broker.client.hlen("unacked") == 1
        wait_until(lambda: cache.hexists("house done", "1"), timeout=60, what="its task's end")
        wait_until(lambda: not helpdesk.broker.client.hlen("unacked"), timeout=30, what="its acknowledgement")
        assert not helpdesk.broker.client.llen("house")
    assert cache.hget("house begun", "1") == b"1"


def test_thousands_of_a_dead_workers_messages_are_back_at_once_and_in_their_order(helpdesk: HelpDesk) -> None:
    number = 4000
    client = helpdesk.broker.client
    with (
        Worker(_environment(helpdesk), "-Q", "bulk") as worker,
        Celery("tests", broker=helpdesk.broker.url, set_as_current=False) as app,
    ):
        with app.pool.acquire(block=True) as connection:
            for each in range(number):
                app.send_task(
                    "killed.note", [each], queue="bulk", countdown=3600, connection=connection, argsrepr=""
                )
        wait_until(lambda: len(held(client)) == number, timeout=90, what="the worker to hold them all")
        order = _numbers(app, sorted_by_claim(client))
        assert order == list(range(number))
        worker.kill()
        before = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        with Worker(_environment(helpdesk), "-Q", "cache"):
            wait_until(lambda: client.llen("bulk") == number, timeout=60, what="all to be back")
        assert held(client) == []
        assert _numbers(app, list(reversed(client.lrange("bulk", 0, -1)))) == order
        assert not list(client.scan_iter("cdc:restoring:*"))
        assert client.info("commandstats")["cmdstat_evalsha"]["calls"] - before < number / 10


def sorted_by_claim(client: Any) -> list[bytes]:
    (index,) = client.scan_iter("cdc:unacked_index:*")
    lease = index.rpartition(b":")[2].decode()
    messages = client.hmget(f"cdc:unacked:{lease}", client.zrange(index, 0, -1))
    return [message for message in messages if message is not None]


def _numbers(app: Celery, messages: list[bytes]) -> list[int]:
    import json
    from base64 import b64decode

    found = []
    for message in messages:
        loaded = json.loads(message)
        envelope = loaded[0] if isinstance(loaded, list) else loaded
        found.append(json.loads(b64decode(envelope["body"]))[0][0])
    return found
