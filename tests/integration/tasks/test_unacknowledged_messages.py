"""Unacknowledged messages on Redis: those of a dead worker come back soon, in order, and others' are left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any

from celery import Celery
from kombu import Connection, Queue
from kombu.asynchronous import Hub

from cdc_tasks.broker.redis.transport import Transport
from harness.waiting import wait_until
from harness.worker import Worker, unacknowledged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.helpdesk import HelpDesk

_CHECKOUT = Path(__file__).resolve().parents[3]


@contextmanager
def stock_worker(helpdesk: HelpDesk) -> Iterator[subprocess.Popen[bytes]]:
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "tests.support.tasks.stock",
        "worker",
        "-c2",
        "-Q",
        "house",
    ]
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
        "CDC_TASK_MODULES": "tests.support.tasks.holding",
        "CELERY_CONFIG_MODULE": "tests.support.celery_settings.short_lease",  # three seconds
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
        Worker(_environment(helpdesk), "-Q", "cdc_bulk") as worker,
        Celery("tests", broker=helpdesk.broker.url, set_as_current=False) as app,
    ):
        with app.pool.acquire(block=True) as connection:
            for each in range(number):
                app.send_task(
                    "killed.note",
                    [each],
                    queue="cdc_bulk",
                    countdown=3600,
                    connection=connection,
                    argsrepr="",
                )
        wait_until(
            lambda: len(unacknowledged(client)) == number, timeout=90, what="the worker to hold them all"
        )
        order = _numbers(app, sorted_by_claim(client))
        assert order == list(range(number))
        worker.kill()
        before = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        with Worker(_environment(helpdesk), "-Q", "cdc_cache"):
            wait_until(lambda: client.llen("cdc_bulk") == number, timeout=60, what="all to be back")
        assert unacknowledged(client) == []
        assert _numbers(app, list(reversed(client.lrange("cdc_bulk", 0, -1)))) == order
        assert not list(client.scan_iter("cdc:restoring:*"))
        assert client.info("commandstats")["cmdstat_evalsha"]["calls"] - before < number / 10


def test_unacknowledged_messages_have_the_applications_prefix_and_go_back_with_it(helpdesk: HelpDesk) -> None:
    client, cache = helpdesk.broker.client, helpdesk.broker.cache
    environment = {
        **_environment(helpdesk),
        "CELERY_CONFIG_MODULE": "tests.support.celery_settings.with_prefix",
    }
    with Celery("tests", broker=helpdesk.broker.url, set_as_current=False) as app:
        app.conf.broker_transport_options = {"global_keyprefix": "team:"}
        with Worker(environment, "-Q", "cdc_bulk") as worker:
            for number in range(3):
                app.send_task("killed.note", [number], queue="cdc_bulk", countdown=3600)
            wait_until(
                lambda: len(unacknowledged(client, "team:")) == 3, timeout=30, what="the worker to hold them"
            )
            wait_until(lambda: _blocked(client) == 1, what="the worker to wait for more")
            worker.pause()
            app.send_task("killed.note", [3], queue="cdc_bulk")
            wait_until(lambda: client.llen(_only(client, "team:cdc:inbox:*")), what="what came meanwhile")
            worker.kill()
        with Worker(environment, "-Q", "cdc_cache"):
            wait_until(lambda: client.llen("team:cdc_bulk") == 4, timeout=60, what="all to be back")
            app.send_task("killed.note", [4], queue="cdc_cache")
            wait_until(lambda: cache.hexists("noted", "4"), what="a task of the other worker")
    assert _numbers(app, list(reversed(client.lrange("team:cdc_bulk", 0, -1)))) == [0, 1, 2, 3]
    assert not [key for key in client.scan_iter() if not key.startswith((b"team:", b"/"))]


def test_a_queue_that_is_no_list_any_more_blocks_the_messages_of_no_other_dead_worker(
    helpdesk: HelpDesk,
) -> None:
    """Nothing goes back twice either, although a script that fails is not rolled back."""
    client = helpdesk.broker.client
    with (
        Worker(_environment(helpdesk), "-Q", "cdc_bulk,celery", "-n", "one@%h") as one,
        Worker(_environment(helpdesk), "-Q", "cdc_notifications", "-n", "two@%h") as two,
    ):
        for queue in ("cdc_bulk", "celery", "cdc_notifications"):
            helpdesk.send("killed.note", 1, queue=queue, countdown=3600)
        wait_until(lambda: len(unacknowledged(client)) == 3, timeout=30, what="the workers to hold them")
        one.kill()
        two.kill()
    client.set("celery", "not a queue")
    with Worker(_environment(helpdesk), "-Q", "cdc_cache") as other:
        wait_until(lambda: client.llen("cdc_notifications") == 1, timeout=60, what="the other's message")
        wait_until(lambda: "cannot go back now" in other.log, timeout=30, what="what it says")
        wait_until(
            lambda: not list(client.scan_iter("cdc:restoring:*")), what="nothing to be left of the try"
        )
        client.delete("celery")
        wait_until(lambda: client.llen("celery") == 1, timeout=30, what="the rest")
    assert client.llen("cdc_bulk") == 1
    assert unacknowledged(client) == []


def test_workers_go_on_when_redis_has_lost_all_it_had(helpdesk: HelpDesk) -> None:
    client, cache = helpdesk.broker.client, helpdesk.broker.cache
    with Worker(_environment(helpdesk), "-Q", "cdc_bulk") as worker:
        helpdesk.send("killed.note", 1, queue="cdc_bulk", countdown=3600)
        wait_until(lambda: len(unacknowledged(client)) == 1, timeout=30, what="the worker to hold it")
        client.flushall()
        client.script_flush()
        helpdesk.send("killed.note", 2, queue="cdc_bulk")
        wait_until(lambda: cache.hexists("noted", "2"), timeout=30, what="what came after")
        wait_until(lambda: _blocked(client) == 1, what="the worker to wait")
        worker.pause()
        helpdesk.send("killed.note", 3, queue="cdc_bulk")
        wait_until(lambda: list(client.scan_iter("cdc:inbox:*")), what="what came into its inbox")
        worker.kill()
        with Worker(_environment(helpdesk), "-Q", "cdc_bulk"):
            wait_until(lambda: cache.hexists("noted", "3"), timeout=60, what="what a dead worker's inbox had")


def _blocked(client: Any) -> int:
    return int(client.info("clients")["blocked_clients"])


def _only(client: Any, pattern: str) -> str:
    return next((key.decode() for key in client.scan_iter(pattern)), "none")


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


def test_the_late_answer_to_a_claim_forgets_no_newer_acknowledgement(helpdesk: HelpDesk) -> None:
    """The worker is full before it reads the answer, as when the timer of a message with an ETA fires."""
    with Connection(helpdesk.broker.url, transport=Transport) as connection:
        channel: Any = connection.channel()
        taken: list[Any] = []
        with connection.Consumer([Queue("bulk")], channel, on_message=taken.append):
            for number in range(2):
                connection.Producer().publish(number, routing_key="bulk")
            while len(taken) < 2:
                connection.drain_events(timeout=10)
            poller, connection.transport.loop = connection.transport.cycle, Hub()
            channel.qos.prefetch_count = 3
            taken[0].ack()
            channel.look_again()
            poller.on_poll_start()  # sends a claim, with this acknowledgement
            channel.qos.prefetch_count = 1
            poller.on_poll_start()  # full: it does not read the answer, and sends the acknowledgement again
            assert len(unacknowledged(helpdesk.broker.client)) == 1
            channel.qos.prefetch_count = 3
            taken[1].ack()
            with suppress(Empty):
                channel._brpop_read()
            channel.look_again()
            poller.on_poll_start()
            with suppress(Empty):
                channel._brpop_read()
            assert not unacknowledged(helpdesk.broker.client)
