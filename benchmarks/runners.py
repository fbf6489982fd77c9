"""Tasks a second of one worker with two processes: ours, stock Celery, dramatiq and taskiq, in turn on one Redis."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final, TypedDict
from uuid import uuid4

import redis

from benchmarks.environments import python_with
from benchmarks.readings import group_cpu_seconds
from benchmarks.runner_apps.record import NOTES, read_times
from cdc_tasks.broker.redis.message_groups import MessageGroups
from cdc_tasks.routing.message_groups import KEY_HEADER
from cdc_tasks.words import counted
from harness.embedded_servers import ValkeyServer
from harness.listener_process import mortal
from harness.waiting import wait_until

__all__ = ["VERSIONS", "Measured", "race"]

VERSIONS: Final = ("dramatiq[redis]==2.2.1", "taskiq[orjson,uv]==0.13.0", "taskiq-redis==1.2.4")

_CHECKOUT: Final = Path(__file__).resolve().parents[1]
_PAYLOADS: Final = {"no-op": None, "1 kB": "x" * 1_000}
_WARM: Final = 0.1  # the share of the tasks that is not timed


class Measured(TypedDict):
    """One contender: the median of its rates, all of them, and the processor time of its processes for a task."""

    rate: int
    rates: list[int]
    cpu: float  # milliseconds


class Contender(ABC):
    """A framework's worker with two processes."""

    name: str

    @abstractmethod
    def fill(self, broker: redis.Redis, url: str, number: int, payload: object) -> None:
        """Put `number` tasks into the queue."""

    @abstractmethod
    def command(self) -> Sequence[str]:
        """Return the command that starts the worker."""

    def environment(self) -> Mapping[str, str]:
        return {}


class _Celery(Contender):
    queue: str
    application: str
    arguments: tuple[str, ...] = ()
    processes = 2

    def fill(self, broker: redis.Redis, url: str, number: int, payload: object) -> None:  # noqa: ARG002
        for start in range(0, number, 1_000):
            count = min(1_000, number - start)
            broker.lpush(
                self.queue, *(_message(self.queue, payload, self.key(start + each)) for each in range(count))
            )

    def key(self, number: int) -> str | None:  # noqa: ARG002
        """Return the message group of the task with this number."""
        return None

    def command(self) -> Sequence[str]:
        options = ["-A", self.application, "worker", "-Q", self.queue, "--loglevel", "info"]
        return [sys.executable, "-m", "celery", *options, "-c", str(self.processes), *self.arguments]


class Ours(_Celery):
    name = "cdc-tasks"
    queue = "cdc_bulk"
    application = "cdc_tasks"

    def environment(self) -> Mapping[str, str]:
        return {
            "CDC_TASK_MODULES": "benchmarks.runner_apps.ours",
            "DATABASE_URL": "postgresql://unused/unused",
        }


class OursAlone(Ours):
    """With one process: only one task of a key runs at a time, so this is the limit for one key."""

    name = "cdc-tasks, one process"
    processes = 1


class OursKeyed(Ours):
    """For each key one task is in the queue, and the others wait for it, as when the listener sends them."""

    def __init__(self, keys: int) -> None:
        self.name = f"cdc-tasks, {counted(keys, 'key')}"
        self._keys = keys

    def key(self, number: int) -> str | None:
        return f"bench:{number % self._keys}"

    def fill(self, broker: redis.Redis, url: str, number: int, payload: object) -> None:  # noqa: ARG002
        groups = MessageGroups(broker)
        for start in range(0, number, 1_000):
            numbers = range(start, min(start + 1_000, number))
            groups.put(*((self.queue, _message(self.queue, payload, self.key(each))) for each in numbers))


class Stock(_Celery):
    name = "Celery, defaults"
    queue = "celery"
    application = "benchmarks.runner_apps.stock"


class LateStock(Stock):
    name = "Celery, late acks, -E"
    arguments = ("-E",)

    def environment(self) -> Mapping[str, str]:
        return {"BENCH_LATE": "1"}


class _Elsewhere(Contender):
    """A framework in its own virtual environment."""

    application: str

    @property
    def python(self) -> Path:
        return python_with("task-runners", VERSIONS)

    def fill(self, broker: redis.Redis, url: str, number: int, payload: object) -> None:  # noqa: ARG002
        subprocess.run(
            [str(self.python), "-m", self.application, str(number), json.dumps(payload)],
            cwd=_CHECKOUT,
            env={**os.environ, "CELERY_BROKER_URL": url},
            check=True,
        )


class Dramatiq(_Elsewhere):
    """With its eight threads in each process, which it recommends for tasks that wait."""

    name = "dramatiq"
    application = "benchmarks.runner_apps.dramatiq_app"

    def command(self) -> Sequence[str]:
        return [str(self.python), "-m", "dramatiq", self.application, "--processes", "2"]


class Taskiq(_Elsewhere):
    """With uvloop and orjson, as it recommends; its tasks are coroutines, a hundred at a time in each process."""

    name = "taskiq"
    application = "benchmarks.runner_apps.taskiq_app"

    def command(self) -> Sequence[str]:
        return [str(self.python), "-m", "taskiq", "worker", f"{self.application}:broker", "--workers", "2"]


_CONTENDERS: Final[tuple[Contender, ...]] = (
    Ours(),
    OursAlone(),
    *(OursKeyed(keys) for keys in (1, 10, 1_000, 100_000)),
    Stock(),
    LateStock(),
    Dramatiq(),
    Taskiq(),
)


def race(number: int, rounds: int, say: Callable[[str], None]) -> dict[str, dict[str, Measured]]:
    """Return, for each payload and contender, how fast one worker runs `number` tasks; `rounds` times, in turn."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for round_ in range(rounds):
        order = [*_CONTENDERS[round_ % len(_CONTENDERS) :], *_CONTENDERS[: round_ % len(_CONTENDERS)]]
        for title, payload in _PAYLOADS.items():
            for each in order:
                rate, cpu = _run(each, number, payload)
                say(f"{title}: {each.name}: {rate:,} tasks/s, {cpu:.2f} ms of CPU a task")
                found.setdefault(title, {}).setdefault(each.name, []).append((rate, cpu))
    return {
        title: {each.name: _summary(of_title[each.name]) for each in _CONTENDERS}
        for title, of_title in found.items()
    }


def _summary(runs: Sequence[tuple[int, float]]) -> Measured:
    rates = [rate for rate, _ in runs]
    return {"rate": round(median(rates)), "rates": rates, "cpu": round(median(cpu for _, cpu in runs), 2)}


def _run(contender: Contender, number: int, payload: object) -> tuple[int, float]:
    """Return the tasks a second, and the milliseconds of processor time for each."""
    with TemporaryDirectory() as directory, ValkeyServer() as valkey:
        with redis.Redis.from_url(valkey.url) as broker:
            contender.fill(broker, valkey.url, number, payload)
        notes, warm = Path(directory) / "notes", int(number * _WARM)
        with _worker(contender, valkey, notes) as process:
            _wait(process, notes, warm)
            cpu, counted = group_cpu_seconds(process.pid), len(read_times(notes))
            _wait(process, notes, number)
            cpu = group_cpu_seconds(process.pid) - cpu
        times = read_times(notes)
    return round((number - warm) / (times[number - 1] - times[warm - 1])), cpu / (number - counted) * 1000


def _wait(process: subprocess.Popen[bytes], notes: Path, number: int) -> None:
    def ran() -> bool:
        if process.poll() is not None:
            raise AssertionError(f"the worker has ended with status {process.returncode}")
        return notes.exists() and notes.stat().st_size >= number * 8

    wait_until(ran, timeout=600, what=f"{number} tasks to run", every=0.05)


@contextmanager
def _worker(contender: Contender, valkey: ValkeyServer, notes: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = {
        **os.environ,
        "CELERY_BROKER_URL": valkey.url,
        "CACHE_URL": valkey.url_of(1),
        NOTES: str(notes),
        "PYTHONPATH": str(_CHECKOUT),
        **contender.environment(),
    }
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            mortal(contender.command()),
            cwd=_CHECKOUT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _message(queue: str, payload: object, key: str | None) -> str:
    """Return a task's message as Celery writes it to Redis."""
    task_id = str(uuid4())
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    headers = {
        "lang": "py",
        "task": "bench.nothing",
        "id": task_id,
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": task_id,
        "parent_id": None,
        "argsrepr": repr((payload,)),
        "kwargsrepr": "{}",
        "origin": "bench",
        "ignore_result": True,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
        **({} if key is None else {KEY_HEADER: key}),
    }
    properties = {
        "correlation_id": task_id,
        "reply_to": str(uuid4()),
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": queue},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": str(uuid4()),
    }
    body = b64encode(json.dumps([[payload], {}, embed]).encode()).decode()
    return json.dumps(
        {
            "body": body,
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": headers,
            "properties": properties,
        }
    )
