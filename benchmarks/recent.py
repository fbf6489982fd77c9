"""The cost of recent changes, and the time to find one: python -m benchmarks.recent [ROWS [ROUNDS]].

The listener reads the same backlog of ROWS new rows, in transactions of 100, with CDC_RECENT_SIZE=0 and with the
default, in turn. Then a million changes are recorded, each in its own transaction with a context, and the command looks
up one row. With ROWS 0, only this part runs.
"""

from __future__ import annotations

import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from typer import echo

from benchmarks.journal import ROUTES, Measured, Stage
from cdc_tasks.changes import Context
from harness.embedded_servers import PostgresServer, ValkeyServer
from listener.control.recent.block import OpenBlock
from listener.control.recent.noting import InForce, Noter, TableKeys
from listener.control.recent.store import RecentStore
from listener.postgres.codec.builtin_types import BUILTIN
from listener.postgres.codec.change import Transaction, WALChange
from listener.postgres.codec.table import Column, Table
from listener.publish.redis.connection import RedisConnection
from listener.router import BinlogRouter, EventType

_MILLION: Final = 1_000_000
_ROWS: Final = 200_003  # of the table with a million changes
_DEFAULT: Final = 64 * 1024**2  # bytes
_TEXT: Final = 25  # the type's OID
_NAME: Final = "bench_journal"


class _Stage(Stage):
    def compare(self, rounds: int) -> None:
        """Measure without and with recent changes, in turn."""
        found: dict[str, list[Measured]] = {"0": [], "64MiB": []}
        for each in range(2 * rounds):
            size = list(found)[(each + each // 2) % 2]  # 0 1 1 0 …: a general slowdown affects both
            self.environment["CDC_RECENT_SIZE"] = size
            found[size].append(self.measure("whole", None))
        for size, all_of in found.items():
            speed = statistics.median(one.per_second for one in all_of)
            cpu = statistics.median(one.cpu for one in all_of)
            echo(f"CDC_RECENT_SIZE={size}: {speed:,.0f} changes/s, {cpu:.2f} µs of CPU a change")

    def find(self) -> tuple[float, float, int]:
        """Return the seconds to find the changes of a row, the seconds of CPU, and the number of changes."""
        began, cpu = time.monotonic(), _cpu_of_children()
        found = self._ask("changes", "items", "--id", "7919", "--json")
        return time.monotonic() - began, _cpu_of_children() - cpu, len(found["changes"])


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _changes(first: int, count: int) -> list[WALChange]:
    """Return updates like those of a busy application: one for each transaction, with a context."""
    names = ("id", "subject", "status", "assignee", "price", "created_at", "note")
    table = Table(
        "public", "items", [Column(name, BUILTIN[_TEXT], key=name == "id") for name in names], identity="f"
    )
    made = list[WALChange]()
    for number in range(first, first + count):
        micros = 848_000_000_000_000 + number * 1_500 + number * 7919 % 1300
        commit = Transaction(24_000_000 + number * 184 + number * 31 % 96, micros, "6b02f19d5f9f4859")
        values = {"user_id": number * 31 % 977, "request_id": f"{number * 2654435761 % 2**64:016x}"}
        commit.context = Context.of(values)
        row = [b"%d" % (number * 7919 % _ROWS), b"Ticket", b"open", b"7", b"1.00", b"2026-11-27", b"note"]
        made.append(WALChange(table.update, row, [*row[:2], b"done", *row[3:]], commit, 0))
    return made


def _fill(store: RecentStore) -> None:
    """Record a million changes."""
    router = BinlogRouter()
    router.register("public", "items", EventType.ALL, "bench.item")
    router.register("public", "items", EventType.UPDATE, "bench.never", when=lambda _: False)
    noter, seconds = Noter(router, TableKeys(dict)), 0.0
    for start in range(0, _MILLION, 1_000):
        block, changes = OpenBlock(), _changes(start, 1_000)
        fired = list(router.tasks_for(changes))
        began = time.thread_time()
        for entry in noter.entries(changes, fired, InForce()):
            block.add(entry)
        packed = block.packed()
        seconds += time.thread_time() - began
        store.write([packed], b"", _DEFAULT, is_first=False)
    sizes = store.sizes()
    echo(f"to note and pack a change: {seconds / _MILLION * 1e6:.1f} µs of CPU")
    echo(f"kept: {sizes.changes:,} changes in {sizes.bytes:,} bytes, {sizes.bytes / sizes.changes:.1f} each")


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 400_000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with tempfile.TemporaryDirectory() as text, PostgresServer() as database, ValkeyServer() as broker:
        (Path(text) / "routes_of_bench.py").write_text(ROUTES)
        stage = _Stage(database, broker, Path(text), rows)
        if rows:
            stage.compare(rounds)
        stage.environment["CDC_ROUTES"] = "routes_of_bench:whole"
        _fill(RecentStore(RedisConnection.of_cache(broker.url), _NAME))
        seconds, cpu, changes = stage.find()
        echo(f"{changes} changes of a row found among a million: {seconds:.2f} s, {cpu:.2f} s of CPU")


if __name__ == "__main__":
    main()
