"""Messages that are due later wait in Redis: a worker keeps a limited number, and none is lost with a worker."""

from __future__ import annotations

import json
import os
import sys
from base64 import b64decode
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from celery import Celery

from cdc_tasks.broker.delays import with_countdown
from cdc_tasks.broker.redis import later as redis_later
from harness.waiting import wait_until
from harness.worker import Worker, unacknowledged
from tests.support.warm_python import WARM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.helpdesk import HelpDesk

_BULK = "cdc:later:cdc_bulk"
_CHECKOUT = Path(__file__).resolve().parents[3]
_HOUR = 3600
_LASTS = with_countdown(
    {}, _HOUR
)  # as one of our tasks has it: it is due after an hour, whatever the clocks say


def _environment(helpdesk: HelpDesk, module: str = "tests.support.tasks.killed") -> dict[str, str]:
    return {
        **helpdesk.environment,
        "CDC_TASK_MODULES": module,
        "CELERY_CONFIG_MODULE": "tests.support.celery_settings.short_lease",
    }


@contextmanager
def _sender(helpdesk: HelpDesk) -> Iterator[Any]:
    """Yield what sends numbers to `killed.note` in the queue bulk."""
    with (
        Celery("tests", broker=helpdesk.broker.url, set_as_current=False) as app,
        app.pool.acquire(block=True) as connection,
    ):
        yield partial(app.send_task, "killed.note", queue="cdc_bulk", connection=connection, argsrepr="")


def test_of_4_000_messages_with_an_eta_a_worker_keeps_few_and_the_due_ones_run(helpdesk: HelpDesk) -> None:
    client, cache, number = helpdesk.broker.client, helpdesk.broker.cache, 4_000
    eta = datetime.now(UTC) + timedelta(hours=5)
    with Worker(_environment(helpdesk), "-Q", "cdc_bulk") as worker, _sender(helpdesk) as send:
        before = _memory(worker)
        for each in range(2000):
            send([each], countdown=_HOUR, headers=_LASTS)
        for each in range(2000, number):
            send([each], eta=eta)
        most = 0

        def all_wait() -> bool:
            nonlocal most
            most = max(most, len(unacknowledged(client)))
            return bool(client.zcard(_BULK) == number)

        wait_until(all_wait, timeout=120, what="all to wait", every=0.2)  # a look reads all that it holds
        assert most <= redis_later.KEEP_MESSAGES
        assert _memory(worker) - before < 50_000_000
        send([number], countdown=1)
        send([number + 1], eta=datetime.now(UTC) + timedelta(seconds=2))
        wait_until(lambda: cache.hlen("noted") == 2, what="what is due meanwhile")
        assert client.zcard(_BULK) == number
        worker.kill()
    assert client.zcard(_BULK) == number
    _pass_by(client, _HOUR)
    with Worker(_environment(helpdesk), "-Q", "cdc_cache"):  # not a consumer of that queue
        wait_until(lambda: client.llen("cdc_bulk"), timeout=30, what="what is due to come back")
        assert client.llen("cdc_bulk") <= 1000  # the rest waits until there is room
    with Worker(_environment(helpdesk), "-Q", "cdc_bulk"):
        wait_until(lambda: cache.hlen("noted") == 2000 + 2, timeout=60, what="what is due to run")
        assert client.zcard(_BULK) == number - 2000
    assert set(cache.hvals("noted")) == {b"1"}


def test_more_than_a_worker_keeps_runs_when_it_is_due(helpdesk: HelpDesk) -> None:
    client, cache = helpdesk.broker.client, helpdesk.broker.cache
    number = redis_later.KEEP_MESSAGES + 500
    with Worker(_environment(helpdesk), "-Q", "cdc_bulk"), _sender(helpdesk) as send:
        eta = datetime.now(UTC) + timedelta(seconds=20)
        for each in range(number):
            send([each], eta=eta)
        wait_until(lambda: client.zcard(_BULK), timeout=20, what="some to wait")
        assert len(unacknowledged(client)) <= redis_later.KEEP_MESSAGES + 2 * 2
        wait_until(lambda: cache.hlen("noted") == number, timeout=60, what="all to run")
    assert set(cache.hvals("noted")) == {b"1"}
    assert not client.exists("cdc:later", _BULK)


def test_what_is_due_goes_ahead_of_the_queue_in_the_order_in_which_it_is_due(helpdesk: HelpDesk) -> None:
    """Also if more is due than is moved at a time, and if the messages came in another order."""
    client, number = helpdesk.broker.client, 2500
    with _sender(helpdesk) as send:
        with Worker(_environment(helpdesk, "tests.support.tasks.killed"), "-Q", "cdc_bulk"):
            soon = datetime.now(UTC) + timedelta(hours=2)
            for each in range(number):
                send([each], eta=soon)
            send([-1], eta=soon - timedelta(seconds=1))
            wait_until(lambda: client.zcard(_BULK) == number + 1, timeout=60, what="all to wait")
        send([number])
        _pass_by(client, 2 * _HOUR)
        seen: list[int] = []
        with Worker(_environment(helpdesk), "-Q", "cdc_cache"):
            while len(seen) <= number:
                wait_until(lambda: client.llen("cdc_bulk") > 1, timeout=30, what="what is due to come back")
                taken = client.rpop("cdc_bulk", min(client.llen("cdc_bulk") - 1, 200))
                seen.extend(_number(message) for message in taken)
    assert seen == list(range(-1, number))
    assert _number(client.rpop("cdc_bulk")) == number


@pytest.mark.versions
def test_what_waits_keeps_its_priority_and_the_applications_prefix(helpdesk: HelpDesk) -> None:
    client, cache = helpdesk.broker.client, helpdesk.broker.cache
    environment = {
        **_environment(helpdesk),
        "CELERY_CONFIG_MODULE": "tests.support.celery_settings.with_prefix",
    }
    with (
        Celery("tests", broker=helpdesk.broker.url, set_as_current=False) as app,
        Worker(environment, "-Q", "cdc_bulk"),
    ):
        app.conf.broker_transport_options = {"global_keyprefix": "team:"}
        app.send_task("killed.note", [1], queue="cdc_bulk", priority=9, countdown=_HOUR, headers=_LASTS)
        wait_until(lambda: client.zcard("team:cdc:later") == 1, what="it to wait")
        assert client.zrange("team:cdc:later", 0, -1) == [b"team:cdc_bulk\x06\x169"]
        _pass_by(client, _HOUR, "team:")
        wait_until(lambda: cache.hexists("noted", "1"), timeout=30, what="it to run")
    assert not [key for key in client.scan_iter() if not key.startswith((b"team:", b"/"))]


def test_what_waits_can_be_revoked_and_expires(helpdesk: HelpDesk) -> None:
    client, cache = helpdesk.broker.client, helpdesk.broker.cache
    with Worker(_environment(helpdesk), "-Q", "cdc_bulk") as worker, _sender(helpdesk) as send:
        plain = send([1], countdown=_HOUR, headers=_LASTS)
        hard = send([2], countdown=_HOUR, headers=_LASTS)
        expires = datetime.now(UTC) + timedelta(seconds=3)
        send([3], countdown=_HOUR, headers=_LASTS, expires=expires)
        send([4], countdown=_HOUR, headers=_LASTS)
        wait_until(lambda: client.zcard(_BULK) == 4, timeout=30, what="all to wait")
        plain.revoke()
        hard.revoke(terminate=True)
        wait_until(lambda: worker.log.count("flagged as revoked") == 1, what="the worker to know")
        wait_until(lambda: datetime.now(UTC) > expires, what="the third to expire")
        _pass_by(client, _HOUR)
        wait_until(lambda: cache.hexists("noted", "4"), timeout=30, what="the one that nobody revoked")
        wait_until(lambda: "Discarding revoked task" in worker.log, what="what the worker says")
        wait_until(lambda: not unacknowledged(client), what="all to be acknowledged")
    assert cache.hkeys("noted") == [b"4"]


def test_to_purge_a_queue_deletes_what_waits_for_it(helpdesk: HelpDesk) -> None:
    client = helpdesk.broker.client
    environment = _environment(helpdesk)
    with Worker(environment, "-Q", "cdc_bulk,cdc_cache"), _sender(helpdesk) as send:
        for _ in range(3):
            send([1], countdown=_HOUR)
        send([1], countdown=_HOUR, queue="cdc_cache")
        wait_until(lambda: client.zcard(_BULK) == 3, timeout=30, what="all to wait")
        wait_until(lambda: client.zcard("cdc:later:cdc_cache") == 1, timeout=30, what="the other too")
    command = [sys.executable, "-m", "celery", "-A", "cdc_tasks", "purge", "-f", "-Q", "cdc_bulk"]
    purged = WARM.run(command, cwd=_CHECKOUT, env={**os.environ, **environment}, check=True)
    assert "3 messages" in purged.stdout
    assert not client.exists(_BULK)
    assert client.zrange("cdc:later", 0, -1) == [b"cdc_cache"]


@pytest.mark.parametrize("step", [_HOUR, -_HOUR])
def test_a_step_of_redis_clock_changes_nothing_and_a_while_without_workers_counts(
    helpdesk: HelpDesk, step: int
) -> None:
    client, cache = helpdesk.broker.client, helpdesk.broker.cache
    with Worker(_environment(helpdesk), "-Q", "cdc_bulk"), _sender(helpdesk) as send:
        send([1], countdown=_HOUR / 2, headers=with_countdown({}, _HOUR / 2))
        wait_until(lambda: client.zcard(_BULK) == 1, timeout=30, what="it to wait")
        before = _passed(client)
        _step(client, step)
        wait_until(lambda: _passed(client) > before + 100, what="a look")
        wait_until(lambda: _passed(client) > before + 3000, what="more looks")
        assert client.zcard(_BULK) == 1
        assert _passed(client) < before + 600_000
    _step(client, _HOUR)
    with Worker(_environment(helpdesk), "-Q", "cdc_bulk"):
        wait_until(lambda: cache.hexists("noted", "1"), timeout=30, what="what was due meanwhile")


def test_what_is_too_early_by_the_clock_of_its_worker_waits_on(helpdesk: HelpDesk) -> None:
    client, cache = helpdesk.broker.client, helpdesk.broker.cache
    with Worker(_environment(helpdesk), "-Q", "cdc_bulk"), _sender(helpdesk) as send:
        send([1], eta=datetime.now(UTC) + timedelta(hours=1))
        wait_until(lambda: client.zcard(_BULK) == 1, timeout=30, what="it to wait")
        number = client.hget("cdc:later-clock", "number")
        _pass_by(client, _HOUR)
        wait_until(lambda: client.hget("cdc:later-clock", "number") != number, what="it to come back")
        wait_until(lambda: client.zcard(_BULK) == 1, what="it to wait again")
        assert client.zscore("cdc:later", "cdc_bulk") - _passed(client) > (_HOUR - 600) * 1000
    assert not cache.exists("noted")


def test_a_full_redis_takes_what_is_to_wait_and_gives_it_back(helpdesk: HelpDesk) -> None:
    client, cache = helpdesk.broker.client, helpdesk.broker.cache
    with (
        Worker(_environment(helpdesk, "tests.support.tasks.killed"), "-Q", "cdc_bulk") as worker,
        _sender(helpdesk) as send,
    ):
        worker.pause()
        send([1], countdown=_HOUR, headers=_LASTS, task_id="one")
        client.config_set("maxmemory", 1)
        try:
            worker.pause(on=False)
            wait_until(lambda: client.zcard(_BULK) == 1, timeout=30, what="it to wait")
            client.config_set("maxmemory", 0)
            _pass_by(client, _HOUR)
            client.config_set("maxmemory", 1)
            wait_until(lambda: not client.exists("cdc:later"), timeout=30, what="it to come back")
        finally:
            client.config_set("maxmemory", 0)
        wait_until(lambda: cache.hexists("noted", "1"), timeout=30, what="it to run")


def test_a_queue_that_is_something_else_now_keeps_what_waits_for_it(helpdesk: HelpDesk) -> None:
    client = helpdesk.broker.client
    with Worker(_environment(helpdesk), "-Q", "cdc_bulk"), _sender(helpdesk) as send:
        send([1], countdown=_HOUR, headers=_LASTS)
        wait_until(lambda: client.zcard(_BULK) == 1, timeout=30, what="it to wait")
    client.set("cdc_bulk", "not a queue")
    _pass_by(client, _HOUR)
    with Worker(_environment(helpdesk), "-Q", "cdc_cache") as worker:
        wait_until(lambda: "cannot go to their queue now" in worker.log, timeout=30, what="what it says")
        assert client.zcard(_BULK) == 1
        client.delete("cdc_bulk")
        wait_until(lambda: client.llen("cdc_bulk") == 1, timeout=30, what="it to come back")


def test_nothing_is_lost_or_doubled_while_workers_that_put_away_and_bring_back_are_killed(
    helpdesk: HelpDesk,
) -> None:
    """Each message is in one place at any moment, and two workers that move at once move it once."""
    client, cache, number = helpdesk.broker.client, helpdesk.broker.cache, 1500
    environment = _environment(helpdesk)
    with _sender(helpdesk) as send:
        for each in range(number):
            send([each], countdown=_HOUR, headers=_LASTS, task_id=f"number-{each}")
        for enough in (number // 4, number // 2, number - 10):
            with Worker(environment, "-Q", "cdc_bulk") as worker:
                wait_until(partial(_wait, client, enough), timeout=60, what="many to wait")
                worker.kill()
            there = [
                client.zcard(_BULK),
                len(unacknowledged(client)),
                client.llen("cdc_bulk"),
                _in_inboxes(client),
            ]
            assert sum(there) == number

        def all_have_run() -> bool:
            if client.zcard(_BULK):  # also messages of a killed worker: their wait starts again
                _pass_by(client, _HOUR)
            return bool(cache.hlen("noted") == number)

        _pass_by(client, _HOUR)
        with (
            Worker(environment, "-Q", "cdc_bulk", "-n", "one@%h") as one,
            Worker(environment, "-Q", "cdc_bulk", "-n", "two@%h"),
            Worker(environment, "-Q", "cdc_cache", "-n", "three@%h"),
        ):
            wait_until(lambda: cache.hlen("noted") > 100, timeout=60, what="some to run")
            one.kill()
            wait_until(all_have_run, timeout=90, what="all to run", every=0.5)
            wait_until(lambda: not unacknowledged(client), what="all to be acknowledged")
    begun = sum(int(times) for times in cache.hvals("begun to note"))
    assert begun <= number + 2 * 2  # only what ran in the killed worker began again
    assert not client.exists("cdc:later", _BULK)


def _wait(client: Any, number: int) -> bool:
    return bool(client.zcard(_BULK) >= number)


def _in_inboxes(client: Any) -> int:
    return sum(client.llen(key) for key in client.scan_iter("cdc:inbox:*"))


def test_health_and_a_command_count_what_waits(helpdesk: HelpDesk) -> None:
    client, environment = helpdesk.broker.client, _environment(helpdesk)
    with Worker(environment, "-Q", "cdc_bulk"), _sender(helpdesk) as send:
        for priority in (0, 9):
            send([1], countdown=_HOUR, priority=priority)
        wait_until(lambda: client.zcard("cdc:later") == 2, timeout=30, what="both to wait")
        assert json.loads(_run(environment, "waiting", "--json")) == {"cdc_bulk": 2}
        assert json.loads(_run(environment, "health", "--json"))["waiting"] == 2


def _run(environment: dict[str, str], *arguments: str) -> str:
    return WARM.run(
        [sys.executable, "-m", "cdc_tasks", *arguments],
        cwd=_CHECKOUT,
        env={**os.environ, **environment},
        check=True,
    ).stdout


def _number(message: Any) -> int:
    return int(json.loads(b64decode(json.loads(message)["body"]))[0][0])


def _pass_by(client: Any, seconds: float, prefix: str = "") -> None:
    """Let time pass for the messages that wait."""
    client.hincrby(f"{prefix}cdc:later-clock", "passed", round(seconds * 1000))


def _passed(client: Any) -> int:
    return int(client.hget("cdc:later-clock", "passed"))


def _step(client: Any, seconds: int) -> None:
    """Step Redis' clock ahead: the time that it had when it was last read is now earlier by as much."""
    client.hincrby("cdc:later-clock", "seen", -seconds * 1000)


def _memory(worker: Worker) -> int:
    return int(psutil.Process(worker.process.pid).memory_info().rss)
