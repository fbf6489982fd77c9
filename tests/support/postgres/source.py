"""A database with a monitor that returns commits as changes."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypeVar

from harness.waiting import Deadline
from listener.core.source import Saved
from listener.postgres.codec.decoder import WALPosition
from listener.postgres.log.position import parse_lsn
from listener.postgres.monitor import PostgresWALMonitor
from listener.router import BinlogRouter, EventType

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from cdc_tasks.changes import Change
    from listener.core.source import Batch
    from listener.postgres.plugins import PluginName
    from tests.conftest import Database

__all__ = ["PLUGINS", "PostgresSource", "rows_of"]

T = TypeVar("T")

# Fixtures of a fresh database, and a plugin that the server has.
PLUGINS: tuple[tuple[str, PluginName], ...] = (
    ("database", "pgoutput"),
    ("debian_database", "pgoutput"),
    ("debian_database", "wal2json"),
)


@dataclass
class PostgresSource:
    """Call `watch` after the tables exist. Leaving the context stops the monitor."""

    database: Database
    plugin: PluginName
    name: str = "cdc_tasks"
    _monitor: PostgresWALMonitor | None = None
    notes: str | None = None  # as the broker would have them
    _position: str | None = None
    _unread: list[Change] = field(default_factory=list)  # arrived while the test waited for something else
    _stack: ExitStack = field(default_factory=ExitStack)

    def watch(self, *tables: str, schema: str = "public", **options: Any) -> None:
        """Start the monitor, with a route for all events of each of these tables (names or globs)."""
        router = BinlogRouter()
        for table in tables:
            router.register(*_split(schema, table), EventType.ALL, "a.task")
        self.watch_routes(router, **options)

    def watch_routes(self, router: BinlogRouter, **options: Any) -> None:
        """Start the monitor with these routes."""
        self._monitor = PostgresWALMonitor(
            self.database.url,
            slot=f"{self.database.name}_{self.name}",
            publication=self.name,
            routes=router.routes,
            plugin=self.plugin,
            **options,
        )
        self._stack.callback(self._monitor.close)
        self._monitor.open(saved=self.saved)
        self._batches = self._monitor.batches(self._position)

    @property
    def saved(self) -> Saved | None:
        """The saved state for the next start."""
        return Saved(self._position, self.notes) if self._position else None

    def stop(self) -> None:
        """Stop the monitor; `watch` starts another that continues from there."""
        self._stack.close()

    def execute(self, *statements: str) -> None:
        """Run each statement in its own transaction."""
        for statement in statements:
            self.database.execute(statement)

    def changes(self, count: int, *, timeout: float = 30) -> list[Change]:
        """Return the next `count` changes, and acknowledge them; fail if other changes arrive, or none."""
        assert self._monitor is not None
        found, deadline = self._unread, Deadline(timeout)
        while len(found) < count:
            deadline.check(f"{len(found)} of {count} changes came")
            self._take(next(self._batches))
        self._unread = []
        assert len(found) == count
        return found

    def read_until(self, condition: Callable[[], T], *, what: str, timeout: float = 30) -> T:
        """Read until `condition` returns a true value, and return it; `changes` returns what arrived meanwhile."""
        deadline = Deadline(timeout)
        while not (value := condition()):
            deadline.check(f"waited for {what}")
            self._take(next(self._batches))
        return value

    def changes_until(self, is_last: Callable[[Change], bool], *, timeout: float = 30) -> list[Change]:
        """Return the next changes up to the first for which `is_last` is true."""
        self.read_until(lambda: any(map(is_last, self._unread)), what="the last change", timeout=timeout)
        found, self._unread = self._unread, []
        return found

    def is_past(self, lsn: str) -> bool:
        """Read a batch, and return whether its position is at that LSN or later."""
        batch = next(self._batches)
        assert self._monitor is not None
        self._monitor.acknowledge(batch.position)
        return WALPosition.parse(batch.position).commit_lsn + 1 >= parse_lsn(lsn)

    def _take(self, batch: Batch) -> None:
        assert self._monitor is not None
        self._unread.extend(batch.changes)
        self._position = batch.position
        self.notes = batch.notes or self.notes
        self._monitor.acknowledge(batch.position)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def _split(schema: str, table: str) -> tuple[str, str]:
    """Return schema and table of a name that may have both."""
    first, dot, rest = table.partition(".")
    return (first, rest) if dot else (schema, table)


def rows_of(changes: list[Change]) -> list[tuple[str, Any, Any, tuple[str, ...]]]:
    """Return the parts that tasks could see: event, before, after, and unavailable columns."""
    return [(change.event.value, change.before, change.after, change.unavailable) for change in changes]
