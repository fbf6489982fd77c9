"""Workers die, and connections break, at the worst moment: no message is lost, and none is sent twice."""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from harness.waiting import wait_until
from harness.worker import Worker, unacknowledged
from tests.integration.tasks.test_rabbitmq import sender_of
from tests.support.forked_workers import ForkedWorkers, is_alive
from tests.support.proxy import Fault, Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

    from tests.support.helpdesk import HelpDesk

# Kills on Redis, and as many on RabbitMQ; CDC_TEST_KILLS=300 for a long run.
_KILLS = int(os.environ.get("CDC_TEST_KILLS", "4"))
_SEED = int(os.environ.get("CDC_TEST_SEED", random.randrange(1_000_000)))
_TICKET = re.compile(r"TKT-(\d+)")


@pytest.fixture
def environment(helpdesk: HelpDesk) -> dict[str, str]:
    return {
        **helpdesk.environment,
        "CDC_TASK_MODULES": "tests.support.tasks.killed",
        "CELERY_CONFIG_MODULE": "tests.support.celery_settings.short_lease",
    }


@pytest.mark.parametrize(
    ("settings", "taking", "is_lost"),
    [
        pytest.param(
            "tests.support.celery_settings.plain_kombu", b"BRPOP\r\n", True, id="with kombu's transport"
        ),
        pytest.param(
            "tests.support.celery_settings.short_lease",
            b"RPOP', KEYS[i]",
            False,
            id="with ours",
            marks=pytest.mark.versions,
        ),
    ],
)
def test_a_message_that_broke_off_on_its_way_to_a_worker(
    helpdesk: HelpDesk, environment: dict[str, str], settings: str, taking: bytes, is_lost: bool
) -> None:
    """A worker or its connection dies after a request to Redis: the answer is lost."""
    helpdesk.broker.client.script_flush()
    with Proxy(helpdesk.broker.server.port) as proxy:
        through = f"redis://127.0.0.1:{proxy.port}/0"
        helpdesk.send("killed.note", 1, queue="cdc_bulk")
        proxy.fail(Fault.LOSE_ANSWER, at=taking)
        with Worker(
            {**environment, "CELERY_BROKER_URL": through, "CELERY_CONFIG_MODULE": settings}, "-Q", "cdc_bulk"
        ):
            wait_until(lambda: proxy.faults, what="the answer to be lost")
            helpdesk.send("killed.note", 2, queue="cdc_bulk")
            wait_until(lambda: _noted(helpdesk).get("2"), timeout=20, what="the next message")
            if is_lost:
                client = helpdesk.broker.client
                wait_until(lambda: not client.hlen("unacked"), what="the next one to be acknowledged")
                assert not client.llen("cdc_bulk")  # so the first is nowhere
                assert _noted(helpdesk) == {"2": 1}
            else:
                wait_until(
                    lambda: _noted(helpdesk) == {"1": 1, "2": 1}, timeout=15, what="the message to come back"
                )


@pytest.mark.versions
def test_a_task_that_takes_its_whole_worker_along_is_given_up_in_the_end(
    helpdesk: HelpDesk, environment: dict[str, str]
) -> None:
    task_id = helpdesk.send("guilty.kills_all", queue="celery")
    with ForkedWorkers({**environment, "CDC_TASK_MODULES": "tests.support.tasks.guilty"}) as workers:
        for _ in range(2):
            worker = workers.start()
            wait_until(lambda: not is_alive(worker), timeout=20, what="the worker to die")  # noqa: B023
        workers.start()
        letters = wait_until(lambda: _letters_of(helpdesk, task_id), timeout=20, what="the letter")
        wait_until(lambda: not unacknowledged(helpdesk.broker.client), timeout=20, what="all else to be done")
    # Other tasks may have run beside it in both workers, and be given up with it: here once is too often.
    assert [each["error"].partition(":")[0] for each in letters] == ["KilledWorkersError"]


def _letters_of(helpdesk: HelpDesk, task_id: str) -> list[dict[str, Any]]:
    return [each for each in _letters(helpdesk) if each["id"] == task_id]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("broker_kind", ["redis", "rabbitmq"])
def test_workers_killed_under_load_lose_nothing_and_send_nothing_twice(
    helpdesk: HelpDesk, environment: dict[str, str], broker_kind: str, request: pytest.FixtureRequest
) -> None:
    """Two workers run, and one is killed again and again, at any moment: while it starts, or during a task."""
    if broker_kind == "rabbitmq":
        environment["CELERY_BROKER_URL"] = request.getfixturevalue("rabbitmq_server").url
    environment |= {"CDC_LOST_ANSWER": "give-up", "CDC_RATES": "slack=0:0"}
    request.node.user_properties.append(("seed", _SEED))
    dice = random.Random(_SEED)
    with (
        sender_of(environment) as sender,
        ForkedWorkers(environment) as workers,
        _explained(helpdesk, workers, request, broker_kind),
    ):
        load = _Load(helpdesk, sender)
        alive = [workers.start(), workers.start()]
        for _ in range(_KILLS):
            load.top_up()
            time.sleep(dice.uniform(0, 1.5))
            victim = alive.pop(dice.randrange(2))
            if dice.random() < 0.5:  # it takes what the broker sends now, and never handles it
                workers.pause(victim)
                load.top_up(by=10)
            workers.kill(victim)
            alive.append(workers.start())
        load.wait_until_done()
    _check_notes(helpdesk, load)
    _check_messages(helpdesk, load)
    record = {"notes": load.notes, "tickets": load.tickets, "cut short": _cut_short(helpdesk)}
    for name, number in record.items():
        request.node.user_properties.append((name, number))


@contextmanager
def _explained(
    helpdesk: HelpDesk, workers: ForkedWorkers, request: pytest.FixtureRequest, broker_kind: str
) -> Iterator[None]:
    """Say where all messages are if a check in this block fails; the log has the stacks of the workers that live."""
    try:
        yield
    except AssertionError as error:
        alive = workers.show_stacks()
        account = {
            "seed": _SEED,
            "workers alive": f"{len(alive)} of {len(workers.alive)}",
            **_where_all_is(helpdesk),
            "broker": _in_rabbitmq(request) if broker_kind == "rabbitmq" else _in_redis(helpdesk),
        }
        lines = (f"{what}: {found}" for what, found in account.items())
        raise AssertionError("\n".join([str(error), *lines])) from error


def _where_all_is(helpdesk: HelpDesk) -> dict[str, Any]:
    cache, noted = helpdesk.broker.cache, _noted(helpdesk)
    begun = {number.decode() for number in cache.hkeys("begun to note")}
    return {
        "notes": len(noted),
        "begun and not ended": sorted(begun - noted.keys(), key=int),
        "messages posted": len(helpdesk.social.posted),
        "dead letters": _letters(helpdesk),
        "held keys": cache.hgetall("cdc:held-keys"),
        "held retries": cache.hkeys("cdc:held-retries"),
    }


def _in_rabbitmq(request: pytest.FixtureRequest) -> str:
    control = request.getfixturevalue("rabbitmq_server").control
    queues = control("list_queues", "name", "messages_ready", "messages_unacknowledged", "consumers")
    return queues + str(control("list_connections", "pid", "peer_port", "state", "channels"))


def _in_redis(helpdesk: HelpDesk) -> str:
    client = helpdesk.broker.client
    waiting = {queue: client.llen(queue) for queue in ("cdc_bulk", "cdc_notifications")}
    return f"waiting: {waiting}, unacknowledged: {unacknowledged(client)}"


class _Load:
    """Keeps workers busy, and knows what was sent."""

    notes = tickets = 0

    def __init__(self, helpdesk: HelpDesk, sender: Celery) -> None:
        self._helpdesk = helpdesk
        self._sender = sender
        self._assignees = [helpdesk.VERA, helpdesk.CARL]
        helpdesk.connect_slack(helpdesk.VERA, "C0VERA")
        helpdesk.connect_slack(helpdesk.CARL, "C0CARL")

    def top_up(self, *, by: int = 0) -> None:
        """Keep some hundred notes and some messages in the queues, and add `by` more."""
        done = self._helpdesk.broker.cache.hlen("noted")
        for _ in range(max(100 - (self.notes - done), 0) + by):
            self.notes += 1
            self._sender.send_task("killed.note", [self.notes], queue="cdc_bulk")
        settled = len(self._helpdesk.social.posted) + len(_letters(self._helpdesk))
        for _ in range(max(8 - (self.tickets - settled), 0) + by // 10):
            self.tickets += 1
            assignee = self._assignees[self.tickets % 2]
            insert = self._helpdesk.insert_ticket(assigned_to_id=assignee).to_message()
            self._sender.send_task("cdc_tasks.notify_ticket_insert", [insert], queue="cdc_notifications")

    def wait_until_done(self) -> None:
        wait_until(lambda: len(_noted(self._helpdesk)) == self.notes, timeout=60, what="all notes", every=0.2)
        wait_until(
            lambda: _settled(self._helpdesk) == self.tickets, timeout=120, what="all messages", every=0.2
        )


def _check_notes(helpdesk: HelpDesk, load: _Load) -> None:
    assert _noted(helpdesk).keys() == {str(number) for number in range(1, load.notes + 1)}


def _check_messages(helpdesk: HelpDesk, load: _Load) -> None:
    """Check that each ticket's message was sent once, or may have been, which a dead letter says; no others exist."""
    posted = Counter(int(_TICKET.findall(each.text)[0]) for each in helpdesk.social.posted)
    letters = _letters(helpdesk)
    assert {each["error"].partition(":")[0] for each in letters} <= {"MaybeSentError"}
    unsure = {each["kwargs"]["subject_id"] for each in letters}
    assert posted.keys() | unsure == set(range(1, load.tickets + 1))
    assert set(posted.values()) == {1}


def _cut_short(helpdesk: HelpDesk) -> int:
    """Return how many notes began and did not end, because their worker was killed."""
    begun = sum(map(int, helpdesk.broker.cache.hvals("begun to note")))
    return begun - sum(_noted(helpdesk).values())


def _settled(helpdesk: HelpDesk) -> int:
    """Return how many tickets' messages were certainly sent, or were given up because that is unknown."""
    done = sum(
        1 for key in helpdesk.broker.cache.scan_iter("cdc:sent:*", count=1000) if _is_sent(helpdesk, key)
    )
    return done + len(_letters(helpdesk))


def _is_sent(helpdesk: HelpDesk, key: bytes) -> bool:
    return bool(helpdesk.broker.cache.hexists(key, "sent"))


def _letters(helpdesk: HelpDesk) -> list[dict[str, Any]]:
    return [json.loads(each) for each in helpdesk.broker.cache.hvals("cdc:dead-letters")]


def _noted(helpdesk: HelpDesk) -> dict[str, int]:
    found = helpdesk.broker.cache.hgetall("noted")
    return {number.decode(): int(times) for number, times in found.items()}
