"""The cost of the journal, and the speed of its answers: python -m benchmarks.journal [ROWS [ROUNDS]].

The listener reads the same backlog of ROWS new rows, in transactions of 100, without and with the journal, in turn. One
route sends whole rows. Another sends two of seven columns, so that the journal has to render each row itself. Then the
benchmark looks up one row, and fires all changes again.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

import psycopg2
import redis
from typer import echo

from harness.embedded_servers import PostgresServer, ValkeyServer

ROUTES: Final = """
from listener.router import BinlogRouter, EventType

def whole(schema="public"):
    router = BinlogRouter()
    router.register(schema, "items", EventType.INSERT, "bench.item", queue="cdc_bulk")
    return router

def narrow(schema="public"):
    router = BinlogRouter()
    router.register(schema, "items", EventType.INSERT, "bench.item", queue="cdc_bulk", columns=["id", "status"])
    return router
"""
_TABLE: Final = """
CREATE TABLE items (id bigserial PRIMARY KEY, subject text, status text, assignee int, price numeric(10, 2),
                    created_at timestamptz, note text)
"""
_INSERT: Final = """
INSERT INTO items (subject, status, assignee, price, created_at, note)
SELECT 'Ticket ' || g, 'open', g % 100, g * 0.01, now(), md5(g::text) FROM generate_series(1, 100) g
"""
_PROGRAM: Final = [sys.executable, "-m", "listener"]
_NAME: Final = "bench_journal"


class Measured(NamedTuple):
    """How fast the listener was."""

    per_second: float
    cpu: float  # microseconds a change


class Stage:
    """A database, a broker, and the setup for a listener that reads rows of a table."""

    def __init__(self, database: PostgresServer, broker: ValkeyServer, directory: Path, rows: int) -> None:
        self._database, self._rows = database, rows
        self._client = redis.Redis.from_url(broker.url)
        self.environment = {
            **os.environ,
            "DATABASE_URL": database.url,
            "CELERY_BROKER_URL": broker.url,
            "CACHE_URL": broker.url,
            "CDC_NAME": _NAME,
            "PYTHONPATH": str(directory),
        }
        with closing(psycopg2.connect(database.url)) as connection, connection.cursor() as cursor:
            cursor.execute(_TABLE)
            connection.commit()

    def measure(self, routes: str, journal: str | None) -> Measured:
        """Write the rows while no listener runs, then start one that reads them."""
        self.environment["CDC_ROUTES"] = f"routes_of_bench:{routes}"
        self.environment.pop("CDC_JOURNAL", None)
        if journal is not None:
            self.environment["CDC_JOURNAL"] = journal
        self._client.delete("cdc_bulk")
        self._once()
        with closing(psycopg2.connect(self._database.url)) as connection, connection.cursor() as cursor:
            for _ in range(self._rows // 100):
                cursor.execute(_INSERT)
                connection.commit()
        with subprocess.Popen([*_PROGRAM, "run"], env=self.environment, stderr=subprocess.DEVNULL) as process:
            first, second = self._at(process, self._rows // 4), self._at(process, self._rows)
            process.terminate()
        count = second[2] - first[2]
        return Measured(count / (second[0] - first[0]), 1e6 * (second[1] - first[1]) / count)

    def _at(self, process: subprocess.Popen[bytes], count: int) -> tuple[float, float, int]:
        while (length := int(self._client.llen("cdc_bulk"))) < count:
            time.sleep(0.002)
        return time.monotonic(), _cpu(process.pid), length

    def _once(self) -> None:
        """Run a listener until it has created its slot."""
        with subprocess.Popen(
            [*_PROGRAM, "run"], env=self.environment, stderr=subprocess.PIPE, text=True
        ) as process:
            for line in process.stderr or ():
                if "streaming" in line:
                    break
            time.sleep(1)
            process.terminate()
            process.communicate()

    def look_up(self) -> tuple[float, int]:
        """Return the seconds to look up the changes of a row, and the number of all changes."""
        summary = self._ask("journal", "--json")
        began = time.monotonic()
        self._ask("journal", "items", "--id", str(self._rows // 2), "--json")
        return time.monotonic() - began, summary["changes"]

    def replay(self) -> float:
        """Fire all changes again; return changes a second."""
        self._client.delete("cdc_bulk")
        with subprocess.Popen([*_PROGRAM, "run"], env=self.environment, stderr=subprocess.DEVNULL) as process:
            name = self._ask("replay", "--since", "2020-01-01", "--accept-gap", "--all-routes", "--json")[
                "id"
            ]
            while (shown := self._ask("replays", "show", name, "--json"))["state"] != "done":
                time.sleep(0.2)
            process.terminate()
        took = time.mktime(time.strptime(shown["updated_at"][:19], "%Y-%m-%dT%H:%M:%S")) - time.mktime(
            time.strptime(shown["started_at"][:19], "%Y-%m-%dT%H:%M:%S")
        )
        return float(shown["changes"] / max(1.0, took))

    def _ask(self, *arguments: str) -> Any:
        done = subprocess.run([*_PROGRAM, *arguments], env=self.environment, capture_output=True, check=True)
        return json.loads(done.stdout)


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 400_000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    with tempfile.TemporaryDirectory() as text, PostgresServer() as database, ValkeyServer() as broker:
        (Path(text) / "routes_of_bench.py").write_text(ROUTES)
        stage = Stage(database, broker, Path(text), rows)
        for routes in ("whole", "narrow"):
            found: dict[str, list[Measured]] = {"without": [], "with": []}
            for _ in range(rounds):
                found["without"].append(stage.measure(routes, None))
                found["with"].append(stage.measure(routes, f"{text}/{routes}"))
            for what, each in found.items():
                speed = statistics.median(one.per_second for one in each)
                cpu = statistics.median(one.cpu for one in each)
                echo(f"{routes}, {what}: {speed:,.0f} changes/s, {cpu:.2f} µs of CPU a change")
            size = sum(path.stat().st_size for path in Path(text, routes).iterdir())
            echo(f"{routes}: {size / rows / rounds:.1f} bytes a change on disk")
        seconds, changes = stage.look_up()
        echo(f"a row looked up among {changes:,} changes: {seconds:.2f} s, with the start of the command")
        echo(f"replay: {stage.replay():,.0f} changes/s")


if __name__ == "__main__":
    main()
