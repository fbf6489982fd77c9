"""The speed of a backfill, and the delay of live changes meanwhile: python -m benchmarks.backfill [ROWS].

`--database mysql` or `mariadb` measures these instead of PostgreSQL. A table with ROWS rows of seven columns is sent to
one route as fast as possible. At the same time one client commits 1,000 rows a second into another table; their time
from commit to queue is measured with and without the backfill.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import psycopg2
import redis

from harness.embedded_servers import PostgresServer, ValkeyServer
from harness.mysql_servers import MariaDBServer, MySQLServer

_ROUTES: Final = """
from listener.router import BinlogRouter, EventType

def setup(schema="public"):
    router = BinlogRouter()
    router.register(schema, "items", EventType.READ, "bench.item", queue="cdc_bulk")
    router.register(schema, "live", EventType.INSERT, "bench.live", queue="cdc_cache", args=["at"])
    return router
"""
_TABLES: Final = {
    "postgres": """
CREATE TABLE items (id bigint PRIMARY KEY, subject text, status text, assignee int, price numeric(10, 2),
                    created_at timestamptz, note text);
CREATE TABLE live (id bigserial PRIMARY KEY, at float8);
INSERT INTO items SELECT g, 'Ticket ' || g, 'open', g % 100, g * 0.01, now(), repeat('n', 40)
FROM generate_series(1, {rows}) g
""",
    "mysql": """
CREATE TABLE items (id bigint PRIMARY KEY, subject varchar(100), status varchar(10), assignee int,
                    price decimal(10, 2), created_at timestamp(6), note text);
CREATE TABLE live (id bigint AUTO_INCREMENT PRIMARY KEY, at double);
SET max_recursive_iterations = 4294967295;
INSERT INTO items WITH RECURSIVE g (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < {rows})
SELECT n, CONCAT('Ticket ', n), 'open', n % 100, n * 0.01, NOW(6), REPEAT('n', 40) FROM g
""",
}
_PER_SECOND: Final = 1_000
_KEPT: Final = 200_000  # messages in the queue: those of ten million rows would be 12 GB
_PROGRAM: Final = [sys.executable, "-m", "listener"]


class _Live:
    """One client's commits, and the time of each to the queue."""

    def __init__(self, connect: Callable[[], Any], broker: redis.Redis) -> None:
        self._connect, self._broker = connect, broker
        self.delays: list[float] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=each) for each in (self._write, self._read)]
        for each in self._threads:
            each.start()

    def _write(self) -> None:
        with closing(self._connect()) as connection, connection.cursor() as cursor:
            due = time.monotonic()
            while not self._stop.is_set():
                cursor.execute("INSERT INTO live (at) VALUES (%s)", [time.time()])
                due += 1 / _PER_SECOND
                time.sleep(max(0.0, due - time.monotonic()))

    def _read(self) -> None:
        while not self._stop.is_set():
            found: Any = self._broker.blpop(["cdc_cache"], timeout=1)
            if found is not None:
                now, body = time.time(), base64.b64decode(json.loads(found[1])["body"])
                self.delays.append(now - json.loads(body)[0][0])

    def end(self) -> str:
        self._stop.set()
        for each in self._threads:
            each.join()
        ordered = sorted(self.delays)
        part = [1000 * ordered[int(len(ordered) * share)] for share in (0.5, 0.99)]
        return f"{len(ordered)} live rows, p50 {part[0]:.1f} ms, p99 {part[1]:.1f} ms"


@contextmanager
def _server(kind: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Start a server; yield its database's URL, and a function that connects to it in autocommit mode."""
    if kind == "postgres":
        with PostgresServer() as postgres:
            url = postgres.url_of("postgres")
            yield url, partial(_connect_postgres, url)
        return
    with MariaDBServer() if kind == "mariadb" else MySQLServer() as server:
        yield server.create_database("bench"), partial(server.connect, "bench")


def _connect_postgres(url: str) -> Any:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    return connection


def _fill(connect: Callable[[], Any], kind: str, rows: int) -> None:
    statements = _TABLES["postgres" if kind == "postgres" else "mysql"].format(rows=rows)
    if kind == "mysql":
        statements = statements.replace("max_recursive_iterations", "cte_max_recursion_depth")
    with closing(connect()) as connection, connection.cursor() as cursor:
        for statement in statements.split(";"):
            cursor.execute(statement)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int, nargs="?", default=500_000)
    parser.add_argument("chunk", nargs="?", default="1000")
    parser.add_argument("--database", choices=("postgres", "mysql", "mariadb"), default="postgres")
    chosen = parser.parse_args()
    with (
        _server(chosen.database) as (url, connect),
        ValkeyServer() as broker,
        tempfile.TemporaryDirectory() as home,
    ):
        Path(home, "bench_routes.py").write_text(_ROUTES)
        _fill(connect, chosen.database, chosen.rows)
        environment = {
            **os.environ,
            "DATABASE_URL": url,
            "CELERY_BROKER_URL": broker.url,
            "CACHE_URL": broker.url_of(1),
            "CDC_ROUTES": "bench_routes:setup",
            "PYTHONPATH": home,
        }
        with subprocess.Popen(_PROGRAM, env=environment, stderr=subprocess.DEVNULL) as listener:
            try:
                _measure(environment, connect, redis.Redis.from_url(broker.url), chosen.chunk, listener.pid)
            finally:
                listener.terminate()


def _measure(
    environment: dict[str, str], connect: Callable[[], Any], broker: redis.Redis, chunk: str, pid: int
) -> None:
    def types(*arguments: str) -> Any:
        done = subprocess.run(
            [*_PROGRAM, *arguments, "--json"], env=environment, check=True, capture_output=True, text=True
        )
        return json.loads(done.stdout)

    time.sleep(5)
    for is_live in (False, True):
        if is_live:
            alone = _Live(connect, broker)
            time.sleep(10)
            _say(f"without a backfill: {alone.end()}")
        live = _Live(connect, broker) if is_live else None
        before = _cpu_seconds(pid)
        name = types("backfill", "items", "--chunk", chunk)["id"]
        while (found := types("backfills", "show", name))["state"] != "done":
            broker.ltrim("cdc_bulk", 0, _KEPT - 1)  # the others are gone, as if workers had taken them
            time.sleep(1)
        live_times = f", {live.end()}" if live else ""
        used = found["sent"] / (_cpu_seconds(pid) - before)
        peak = _peak_megabytes(pid)
        _say(
            f"{found['sent']} rows, {found['rows_per_second']} rows/s, {used:.0f} a CPU second, "
            f"up to {peak:.0f} MB{live_times}"
        )
        broker.delete("cdc_bulk")


def _cpu_seconds(pid: int) -> float:
    """Return the processor time of a process: wall-clock times are unreliable on a busy machine."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_megabytes(pid: int) -> float:
    """Return the peak memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
