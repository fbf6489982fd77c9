"""How fast a backfill is, and what a live change waits for meanwhile: python -m benchmarks.backfill [ROWS].

A table with ROWS rows of seven columns is sent to one route, as fast as it goes. Beside it, one client commits 1,000
rows a second into another table; their way from the commit to the queue is measured with and without the backfill.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import psycopg2
import redis

from harness.embedded_servers import PostgresServer, ValkeyServer

_ROUTES: Final = """
from listener.router import BinlogRouter, EventType

def setup(schema="public"):
    router = BinlogRouter()
    router.register(schema, "items", EventType.READ, "bench.item", queue="cdc_bulk")
    router.register(schema, "live", EventType.INSERT, "bench.live", queue="cdc_cache", args=["at"])
    return router
"""
_TABLES: Final = """
CREATE TABLE items (id bigint PRIMARY KEY, subject text, status text, assignee int, price numeric(10, 2),
                    created_at timestamptz, note text);
CREATE TABLE live (id bigserial PRIMARY KEY, at float8);
INSERT INTO items SELECT g, 'Ticket ' || g, 'open', g % 100, g * 0.01, now(), repeat('n', 40)
FROM generate_series(1, {rows}) g
"""
_PER_SECOND: Final = 1_000
_PROGRAM: Final = [sys.executable, "-m", "listener"]


class _Live:
    """One client's commits, and how long each was on its way to the queue."""

    def __init__(self, url: str, broker: redis.Redis) -> None:
        self._url, self._broker = url, broker
        self.delays: list[float] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=each) for each in (self._write, self._read)]
        for each in self._threads:
            each.start()

    def _write(self) -> None:
        with closing(psycopg2.connect(self._url)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
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


def main() -> None:
    """Measure, and print."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 500_000
    chunk = sys.argv[2] if len(sys.argv) > 2 else "1000"
    with PostgresServer() as server, ValkeyServer() as broker, tempfile.TemporaryDirectory() as home:
        Path(home, "bench_routes.py").write_text(_ROUTES)
        url = server.url_of("postgres")
        with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(_TABLES.format(rows=rows))
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
                _measure(environment, redis.Redis.from_url(broker.url), chunk, listener.pid)
            finally:
                listener.terminate()


def _measure(environment: dict[str, str], broker: redis.Redis, chunk: str, pid: int) -> None:
    url = environment["DATABASE_URL"]

    def types(*arguments: str) -> Any:
        done = subprocess.run(
            [*_PROGRAM, *arguments, "--json"], env=environment, check=True, capture_output=True, text=True
        )
        return json.loads(done.stdout)

    time.sleep(5)
    for is_live in (False, True):
        if is_live:
            alone = _Live(url, broker)
            time.sleep(10)
            _say(f"without a backfill: {alone.end()}")
        live = _Live(url, broker) if is_live else None
        before = _cpu_seconds(pid)
        name = types("backfill", "items", "--chunk", chunk)["id"]
        while (found := types("backfills", "show", name))["state"] != "done":
            time.sleep(1)
        told = f", {live.end()}" if live else ""
        used = found["sent"] / (_cpu_seconds(pid) - before)
        _say(f"{found['sent']} rows, {found['rows_per_second']} rows/s, {used:.0f} a CPU second{told}")
        broker.delete("cdc_bulk")


def _cpu_seconds(pid: int) -> float:
    """Return the processor's time that a process has used: this machine is not quiet."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
