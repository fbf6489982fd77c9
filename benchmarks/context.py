"""The cost of a context for the listener: python -m benchmarks.context [ROWS [ROUNDS]].

The listener reads a backlog of ROWS rows, with a context in each transaction and without one, in turn. The transactions
have 1, 10 and 100 rows. On PostgreSQL, into Redis.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Final

import psycopg2
import redis
from typer import echo

from harness.embedded_servers import PostgresServer, ValkeyServer

_ROUTES: Final = """
from listener.router import BinlogRouter, EventType

def setup(schema="public"):
    router = BinlogRouter()
    router.register(schema, "items", EventType.INSERT, "bench.item", queue="cdc_bulk")
    return router
"""
# As `cdc_tasks.context` writes it at the beginning of a transaction. Each transaction has another context.
_SAY: Final = """PERFORM pg_logical_emit_message(true, 'cdc_tasks',
    format('{"context": {"user_id": %s, "request_id": "%s"}}', i, gen_random_uuid()));"""
_COMMITS: Final = """DO $$ BEGIN FOR i IN 1..{transactions} LOOP
    {says} INSERT INTO items (status) SELECT 'new' FROM generate_series(1, {rows}); COMMIT;
END LOOP; END $$"""
_SIZES: Final = (1, 10, 100)  # rows of a transaction
_PROGRAM: Final = [sys.executable, "-m", "listener", "run"]


class _Stage:
    def __init__(self, database: PostgresServer, broker: ValkeyServer, directory: Path, rows: int) -> None:
        self._database, self._rows = database, rows
        self._client = redis.Redis.from_url(broker.url)
        (directory / "routes_of_bench.py").write_text(_ROUTES)
        self._environment = {
            **os.environ,
            "DATABASE_URL": database.url,
            "CELERY_BROKER_URL": broker.url,
            "CACHE_URL": broker.url,
            "CDC_NAME": "bench_context",
            "CDC_ROUTES": "routes_of_bench:setup",
            "PYTHONPATH": f"{directory}:{os.environ.get('PYTHONPATH', '')}",
        }
        self._run("CREATE TABLE items (id bigserial PRIMARY KEY, status text)")
        with subprocess.Popen(
            _PROGRAM, env=self._environment, stderr=subprocess.PIPE, text=True
        ) as process:  # it makes its slot
            next(line for line in process.stderr or () if "streaming" in line)
            process.terminate()

    def measure(self, size: int, says: str) -> tuple[float, float]:
        """Return rows a second, and µs of the listener's CPU for each, without the first quarter."""
        self._client.delete("cdc_bulk")
        self._run(_COMMITS.format(transactions=self._rows // size, rows=size, says=says))
        with subprocess.Popen(_PROGRAM, env=self._environment, stderr=subprocess.DEVNULL) as process:
            first, second = self._at(process, self._rows // 4), self._at(process, self._rows)
            process.terminate()
        count = second[2] - first[2]
        return count / (second[0] - first[0]), 1e6 * (second[1] - first[1]) / count

    def _at(self, process: subprocess.Popen[bytes], count: int) -> tuple[float, float, int]:
        while (length := int(self._client.llen("cdc_bulk"))) < count:  # type: ignore[arg-type]  # the stubs have coroutines
            time.sleep(0.002)
        return time.monotonic(), _cpu(process.pid), length

    def _run(self, statement: str) -> None:
        with closing(psycopg2.connect(self._database.url)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SET synchronous_commit = off")
                cursor.execute(statement)


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    kinds = [(size, says) for size in _SIZES for says in ("", _SAY)]
    found: dict[tuple[int, str], list[tuple[float, float]]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as text, PostgresServer() as database, ValkeyServer() as broker:
        stage = _Stage(database, broker, Path(text), rows)
        for _ in range(rounds):
            for (size, says), measured in found.items():
                measured.append(stage.measure(size, says))
    for (size, says), measured in found.items():
        speed, cpu = (statistics.median(values) for values in zip(*measured, strict=True))
        what = "with a context" if says else "without"
        echo(f"{size} rows a transaction, {what}: {speed:,.0f} rows a second, {cpu:.2f} µs of CPU each")


if __name__ == "__main__":
    main()
