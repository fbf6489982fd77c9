"""A burst of messages that waits for a rate limit: the cost for a worker, and its other work meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import getloadavg
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final, TypedDict

from celery import Celery
from cryptography.fernet import Fernet

from benchmarks.messages import PEOPLE, HelpDeskStage, lines_in, worker_environment
from benchmarks.readings import cpu_seconds, group_cpu_seconds
from benchmarks.slack_stub import slack_stub
from benchmarks.tasks import STARTS, read_starts
from cdc_tasks.broker.redis.message_groups import LENGTHS
from harness.listener_process import ListenerProcess
from harness.waiting import wait_until
from harness.worker import Worker

__all__ = ["Burst", "Part", "wait_behind_rates"]

_REFRESH: Final = "cdc_tasks.refresh_master_cache"
_TABLE: Final = "priorities"
_EVERY: Final = 1.5  # seconds between two refreshes
_SETTLES: Final = 5.0  # seconds until a worker has finished starting
_OWNERS: Final = 10  # more than the number of messages that own their account's key or have just been sent


class Part(TypedDict):
    """The cost of some seconds, and the cache refreshes that were sent in them."""

    cpu: float  # milliseconds a second, of the worker's processes
    redis_cpu: float
    sent: int  # messages
    count: int  # refreshes
    p50: float  # milliseconds from sending a refresh until its task began
    worst: float


class Burst(TypedDict):
    """One worker with two processes, and one message a second to each of three channels."""

    messages: int
    load: float  # of the machine, from other work before it began
    seconds: float  # of the first and the last part
    idle: Part  # before the tickets are inserted
    arriving: Part  # the tickets' tasks run
    waiting: Part  # all other messages wait


def wait_behind_rates(sizes: Sequence[int], seconds: float, say: Callable[[str], None]) -> list[Burst]:
    """Measure bursts of these numbers of tickets, each with its own worker."""
    return [_wait_behind_a_rate(tickets, seconds, say) for tickets in sizes]


def _wait_behind_a_rate(tickets: int, seconds: float, say: Callable[[str], None]) -> Burst:
    """Insert the tickets in one statement; measure before, until all messages wait, and for some seconds after."""
    number, load = tickets * len(PEOPLE), getloadavg()[0]
    with TemporaryDirectory() as directory, HelpDeskStage() as stage:
        posts, starts = Path(directory) / "posts", Path(directory) / "starts"
        key = Fernet.generate_key()
        stage.connect_people(Fernet(key))
        with slack_stub(posts) as slack:
            environment = {
                **worker_environment(stage, key, slack),
                "CDC_RATES": "slack=1:0",
                "CDC_TASK_MODULES": "benchmarks.tasks",
                STARTS: str(starts),
            }
            with (
                Worker(environment) as worker,
                ListenerProcess({**environment, "CDC_NAME": "burst"}) as listener,
                Celery("burst", broker=stage.valkey.url, set_as_current=False) as sender,
            ):
                listener.wait_for("streaming")
                sender.send_task(_REFRESH, [_TABLE], queue="cdc_cache")  # which connects
                time.sleep(_SETTLES)
                measured = _Measured(
                    stage=stage, worker=worker, sender=sender, posts=posts, starts=starts, say=say
                )
                idle = measured.for_seconds(seconds)
                stage.insert(tickets)
                arriving = measured.until(lambda: _waiting(stage) >= number - lines_in(posts) - _OWNERS)
                waiting = measured.for_seconds(seconds)
                listener.stop()
    return {
        "messages": number,
        "load": round(load, 1),
        "seconds": seconds,
        "idle": idle,
        "arriving": arriving,
        "waiting": waiting,
    }


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """The measured processes, and the sender of refreshes to them."""

    stage: HelpDeskStage
    worker: Worker
    sender: Celery
    posts: Path
    starts: Path
    say: Callable[[str], None]

    def for_seconds(self, seconds: float) -> Part:
        """Send refreshes for some seconds."""
        end = time.monotonic() + seconds
        return self.until(lambda: time.monotonic() >= end)

    def until(self, is_over: Callable[[], bool]) -> Part:
        """Send refreshes until it is over, at least one, and wait for their tasks to begin."""
        before = self._now()
        sent: dict[str, float] = {}
        while not sent or not is_over():
            at = time.time()
            sent[str(self.sender.send_task(_REFRESH, [_TABLE], queue="cdc_cache").id)] = at
            time.sleep(_EVERY)
        seconds, cpu, redis_cpu, messages = (
            now - then for now, then in zip(self._now(), before, strict=True)
        )
        wait_until(lambda: sent.keys() <= read_starts(self.starts).keys(), timeout=60, what="the refreshes")
        starts = read_starts(self.starts)
        waits = [(starts[task] - at) * 1000 for task, at in sent.items()]
        part: Part = {
            "cpu": round(cpu / seconds * 1000, 1),
            "redis_cpu": round(redis_cpu / seconds * 1000, 1),
            "sent": int(messages),
            "count": len(waits),
            "p50": round(median(waits), 1),
            "worst": round(max(waits), 1),
        }
        self.say(f"{seconds:.0f} s: {part}")
        return part

    def _now(self) -> tuple[float, ...]:
        """Return the time, the processor time of worker and Redis, and the number of messages."""
        cpu = group_cpu_seconds(self.worker.process.pid)
        return time.monotonic(), cpu, cpu_seconds(self.stage.valkey.pid), lines_in(self.posts)


def _waiting(stage: HelpDeskStage) -> int:
    """Return how many messages wait for others of their account."""
    return int(stage.broker.hget(LENGTHS, "cdc_notifications") or 0)
