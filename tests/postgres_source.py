"""A database with a monitor on it: what is committed comes out as changes."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from listener.monitor import Saved
from listener.postgres.monitor import PostgresWALMonitor
from listener.router import BinlogRouter, EventType
from tests.waiting import Deadline

if TYPE_CHECKING:
    from types import TracebackType

    from cdc_tasks.changes import Change
    from listener.postgres.plugins import PluginName
    from tests.conftest import Database

__all__ = ["PLUGINS", "PostgresSource", "told"]

# Fixtures of a fresh database, and a plugin that the server has.
PLUGINS: tuple[tuple[str, PluginName], ...] = (
    ("database", "pgoutput"),
    ("debian_database", "pgoutput"),
    ("debian_database", "wal2json"),
)


@dataclass
class PostgresSource:
    """Watch it after its tables are there; leave it to stop the monitor."""

    database: Database
    plugin: PluginName
    _monitor: PostgresWALMonitor | None = None
    _position: str | None = None
    _stack: ExitStack = field(default_factory=ExitStack)

    def watch(self, *tables: str, schema: str = "public") -> None:
        """Start the monitor, with a route for all events of each of these tables (names or globs)."""
        router = BinlogRouter()
        for table in tables:
            router.register(schema, table, EventType.ALL, "a.task")
        self._monitor = PostgresWALMonitor(
            self.database.url,
            slot=f"{self.database.name}_slot",
            publication="cdc_tasks",
            routes=router.routes,
            plugin=self.plugin,
        )
        self._stack.callback(self._monitor.close)
        self._monitor.open(saved=Saved(self._position) if self._position else None)
        self._batches = self._monitor.batches(self._position)

    def stop(self) -> None:
        """Stop the monitor; `watch` starts another that goes on from there."""
        self._stack.close()

    def execute(self, *statements: str) -> None:
        """Run each statement in a transaction of its own."""
        for statement in statements:
            self.database.execute(statement)

    def changes(self, count: int, *, timeout: float = 30) -> list[Change]:
        """Return the next `count` changes, and acknowledge them; fail where others come, or none."""
        assert self._monitor is not None
        found: list[Change] = []
        deadline = Deadline(timeout)
        for batch in self._batches:
            found.extend(batch.changes)
            self._position = batch.position
            self._monitor.acknowledge(batch.position)
            if len(found) >= count:
                break
            deadline.check(f"{len(found)} of {count} changes came")
        assert len(found) == count
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def told(changes: list[Change]) -> list[tuple[str, Any, Any, tuple[str, ...]]]:
    """Return what tasks could see of them: event, before, after, and what is unavailable."""
    return [(change.event.value, change.before, change.after, change.unavailable) for change in changes]
