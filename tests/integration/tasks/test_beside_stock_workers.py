"""Stock Celery workers and ours on one Redis database, each with queues of their own, all of them killed at random.

The stock workers' visibility timeout is twelve hours: within the test nobody may put back what they hold. So a task of
theirs that begins twice was put back by ours.
"""

from __future__ import annotations

import json
import os
import random
import time
from base64 import b64decode
from typing import TYPE_CHECKING, NamedTuple

import pytest
from celery import Celery

from harness.waiting import wait_until
from harness.worker import unacknowledged
from tests.support.forked_workers import ForkedWorkers

if TYPE_CHECKING:
    from tests.support.helpdesk import HelpDesk

# Seconds under load; CDC_TEST_BESIDE=120 for a long run, CDC_TEST_SEED for one that was.
_SECONDS = float(os.environ.get("CDC_TEST_BESIDE", "15"))
_SEED = int(os.environ.get("CDC_TEST_SEED", "0"))


class _Side(NamedTuple):
    """One application: its task, its queue, where its task leaves notes, its workers."""

    task: str
    queue: str
    begun: str
    done: str
    workers: ForkedWorkers


@pytest.mark.timeout(600)
def test_both_under_load_and_killed_at_random_they_never_run_each_others_tasks_and_ours_lose_none(
    helpdesk: HelpDesk, request: pytest.FixtureRequest
) -> None:
    dice = random.Random(_SEED)
    environment = {
        **helpdesk.environment,
        "CDC_TASK_MODULES": "tests.support.tasks.killed",
        "CELERY_CONFIG_MODULE": "tests.support.celery_settings.short_lease",  # three seconds
    }
    with (
        Celery("tests", broker=helpdesk.broker.url, set_as_current=False) as sender,
        ForkedWorkers(environment) as ours,
        ForkedWorkers(helpdesk.environment, "-Q", "house", application="tests.support.tasks.stock") as theirs,
    ):
        sides = [
            _Side("killed.note", "cdc_bulk", "begun to note", "noted", ours),
            _Side("house.note", "house", "house begun", "house done", theirs),
        ]
        alive = {side: [side.workers.start(), side.workers.start()] for side in sides}
        sent = dict.fromkeys(sides, 0)
        kills = dict.fromkeys(sides, 0)
        ends = time.monotonic() + _SECONDS
        while time.monotonic() < ends:
            for side in sides:
                sent[side] = _top_up(helpdesk, sender, side, sent[side])
            time.sleep(dice.uniform(0, 1))
            side = dice.choice(sides)
            victim = alive[side].pop(dice.randrange(2))
            if dice.random() < 0.5:  # it takes what the broker sends now
                side.workers.pause(victim)
                sent[side] = _top_up(helpdesk, sender, side, sent[side], by=10)
            side.workers.kill(victim)
            kills[side] += 1
            alive[side].append(side.workers.start())
        _wait_for_ours(helpdesk, sides[0], sent[sides[0]])
        _wait_for_theirs(helpdesk, sides[1])
    lost = _check_theirs(helpdesk, sides[1], sent[sides[1]], kills[sides[1]])
    assert not helpdesk.broker.cache.hlen("cdc:dead-letters"), "ours took a task that it does not have"
    for name, number in {
        "ours": sent[sides[0]],
        "theirs": sent[sides[1]],
        "kills of ours": kills[sides[0]],
        "kills of theirs": kills[sides[1]],
        "lost by kombu itself": lost,
    }.items():
        request.node.user_properties.append((name, number))


def _top_up(helpdesk: HelpDesk, sender: Celery, side: _Side, sent: int, *, by: int = 0) -> int:
    """Keep some hundred tasks in the queue, and add `by` more; return how many were sent in all."""
    for _ in range(max(100 - helpdesk.broker.client.llen(side.queue), 0) + by):
        sent += 1
        sender.send_task(side.task, [sent], queue=side.queue)
    return sent


def _wait_for_ours(helpdesk: HelpDesk, side: _Side, sent: int) -> None:
    cache, client = helpdesk.broker.cache, helpdesk.broker.client
    wait_until(lambda: cache.hlen(side.done) == sent, timeout=90, what="all of our tasks", every=0.2)
    wait_until(lambda: not unacknowledged(client), timeout=30, what="the last acknowledgement")


def _wait_for_theirs(helpdesk: HelpDesk, side: _Side) -> None:
    """Wait until the live workers have run everything in the queues; messages of dead workers stay unacknowledged."""
    cache, client = helpdesk.broker.cache, helpdesk.broker.client
    wait_until(lambda: not client.llen(side.queue), timeout=90, what="their queue to be empty", every=0.2)
    seen: list[int] = []

    def is_still() -> bool:
        seen.append(cache.hlen(side.done))
        return len(seen) > 10 and len(set(seen[-10:])) == 1

    wait_until(is_still, timeout=30, what="their last task", every=0.2)


def _check_theirs(helpdesk: HelpDesk, side: _Side, sent: int, kills: int) -> int:
    """Check that no task began twice; return how many kombu lost: up to one for each kill."""
    cache, client = helpdesk.broker.cache, helpdesk.broker.client
    assert set(cache.hvals(side.begun)) == {b"1"}
    done = {int(number) for number in cache.hkeys(side.done)}
    kept = {_number(message) for message in client.hvals("unacked")}
    lost = set(range(1, sent + 1)) - done - kept
    assert len(lost) <= kills
    assert all(str(number).encode() not in cache.hkeys(side.begun) for number in lost)
    return len(lost)


def _number(unacked: bytes) -> int:
    [number] = json.loads(b64decode(json.loads(unacked)[0]["body"]))[0]
    return int(number)
