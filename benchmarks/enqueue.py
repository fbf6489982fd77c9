"""The speed of tasks that transactions enqueue, compared with rows: python -m benchmarks.enqueue [TASKS [ROUNDS]].

The listener reads a backlog of TASKS rows, and one of as many enqueued tasks, in turn, in transactions of 100. Then one
client commits transactions with one task each, one after the other: how long does it take from commit to queue?
"""

from __future__ import annotations

import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg2
import redis
from celery import Celery
from typer import echo

from harness.embedded_servers import PostgresServer, ValkeyServer

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Stage"]

_ROUTES: Final = """
from listener.router import BinlogRouter, EventType

def setup(schema="public"):
    router = BinlogRouter()
    router.register(schema, "items", EventType.INSERT, "bench.item", queue="cdc_bulk", args=["id"])
    router.accept("bench.*")
    return router
"""
_SAY: Final = """SELECT pg_logical_emit_message(true, 'cdc_tasks', json_build_object('enqueue', json_build_object(
    'task', 'bench.item', 'id', gen_random_uuid(), 'args', json_build_array({value}),
    'options', json_build_object('queue', 'cdc_bulk')))::text)"""
_STATEMENTS: Final = {
    "rows": "INSERT INTO items (status) SELECT 'new' FROM generate_series(1, 100)",
    "enqueued tasks": _SAY.format(value="g") + " FROM generate_series(1, 100) g",
}
_PROGRAM: Final = [sys.executable, "-m", "listener"]
_SENT: Final = 5_000  # with apply_async, and to measure the latency


class Stage:
    """A listener that reads backlogs, and the servers."""

    def __init__(
        self,
        database: PostgresServer,
        broker: ValkeyServer,
        directory: Path,
        tasks: int,
        statements: Mapping[str, str],
    ) -> None:
        """`statements`: SQL that writes a hundred tasks in one transaction, by name."""
        self.environment: dict[str, str] = {}  # more of the listener's
        self._statements = statements
        self._database, self._broker, self._tasks = database, broker, tasks
        self._client = redis.Redis.from_url(broker.url)
        (directory / "routes_of_bench.py").write_text(_ROUTES)
        self._environment = {
            **os.environ,
            "DATABASE_URL": database.url,
            "CELERY_BROKER_URL": broker.url,
            "CACHE_URL": broker.url,
            "CDC_NAME": "bench_enqueue",
            "CDC_ROUTES": "routes_of_bench:setup",
            "PYTHONPATH": str(directory),
        }
        self._run("CREATE TABLE items (id bigserial PRIMARY KEY, status text)")

    def backlog(self, what: str) -> tuple[float, float]:
        """Return tasks a second, and µs of the listener's CPU for each, without the first quarter."""
        self._client.delete("cdc_bulk")
        with self._listener() as process:  # it makes its slot
            process.terminate()
        self._run(*[self._statements[what]] * (self._tasks // 100))
        with subprocess.Popen(
            [*_PROGRAM, "run"], env={**self._environment, **self.environment}, stderr=subprocess.DEVNULL
        ) as process:
            first, second = self._at(process, self._tasks // 4), self._at(process, self._tasks)
            process.terminate()
        count = second[2] - first[2]
        return count / (second[0] - first[0]), 1e6 * (second[1] - first[1]) / count

    def apply_async(self) -> float:
        """Return how many tasks a second a loop with apply_async sends."""
        app = Celery(broker=self._broker.url, set_as_current=False)
        began = time.monotonic()
        for number in range(_SENT):
            app.send_task("bench.item", [number], queue="by_hand")
        return _SENT / (time.monotonic() - began)

    def latencies(self) -> list[float]:
        """Return milliseconds from just before each commit until its task can be taken, the shortest first."""
        self._client.delete("cdc_bulk")
        found = []
        with self._listener() as process, closing(psycopg2.connect(self._database.url)) as connection:
            cursor = connection.cursor()
            for _ in range(_SENT):
                cursor.execute(_SAY.format(value="%s"), [time.time()])
                connection.commit()
                _, message = self._client.brpop(["cdc_bulk"])  # type: ignore[misc]  # the stubs have coroutines
                body = json.loads(base64.b64decode(json.loads(message)["body"]))
                found.append(1000 * (time.time() - body[0][0]))
            process.terminate()
        return sorted(found)

    def _listener(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*_PROGRAM, "run"],
            env={**self._environment, **self.environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in process.stderr or ():
            if "streaming" in line:
                break
        time.sleep(1)
        return process

    def _at(self, process: subprocess.Popen[bytes], count: int) -> tuple[float, float, int]:
        while (length := int(self._client.llen("cdc_bulk"))) < count:  # type: ignore[arg-type]  # the same
            time.sleep(0.002)
        return time.monotonic(), _cpu(process.pid), length

    def _run(self, *statements: str) -> None:
        with closing(psycopg2.connect(self._database.url)) as connection, connection.cursor() as cursor:
            for each in statements:
                cursor.execute(each)
                connection.commit()


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    tasks = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    with tempfile.TemporaryDirectory() as text, PostgresServer() as database, ValkeyServer() as broker:
        stage = Stage(database, broker, Path(text), tasks, _STATEMENTS)
        found: dict[str, list[tuple[float, float]]] = {what: [] for what in _STATEMENTS}
        for _ in range(rounds):
            for what, measured in found.items():
                measured.append(stage.backlog(what))
        for what, measured in found.items():
            speed, cpu = (statistics.median(values) for values in zip(*measured, strict=True))
            echo(f"{what}: {speed:,.0f} a second, {cpu:.2f} µs of the listener's CPU each")
        echo(f"apply_async in a loop: {stage.apply_async():,.0f} a second")
        times = stage.latencies()
        half, most = (times[int(len(times) * share)] for share in (0.5, 0.99))
        echo(f"before the commit to the queue, one after the other: p50 {half:.1f} ms, p99 {most:.1f} ms")


if __name__ == "__main__":
    main()
