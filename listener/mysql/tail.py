"""Reads the binlog from now on as an additional replica, for `watch`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final
from uuid import uuid4

from cdc_tasks.changes import Change
from cdc_tasks.routing.router import Route
from listener.mysql.monitor import BinlogMonitor, derived_server_id

__all__ = ["BinlogTail"]

_BATCH: Final = 200  # changes


class BinlogTail:
    """A monitor with its own name, lock and server_id; fulfils `listener.core.tail.Tail`.

    After a lost connection it continues where it stopped: the server has the log for all replicas.
    """

    misses_changes = False
    unseen: Sequence[tuple[str, str]] = ()  # a binlog has all tables

    def __init__(self, database_url: str, *, routes: Sequence[Route]) -> None:
        """`routes` select the tables; what they fire does not matter."""
        name = f"watch_{uuid4().hex[:12]}"
        self._server_id = derived_server_id(name)
        self._monitor = BinlogMonitor(
            database_url, name=name, routes=routes, server_id=self._server_id, batch_size=_BATCH
        )
        self._after: str | None = None

    @property
    def reads_by(self) -> str:
        """See `Tail.reads_by`."""
        return f"as a replica with the server_id {self._server_id}"

    def open(self) -> None:
        """See `Tail.open`."""
        self._monitor.open(saved=None)

    def changes(self) -> Iterator[Sequence[Change]]:
        """See `Tail.changes`."""
        for batch in self._monitor.batches(self._after):
            self._after = batch.position
            yield batch.changes

    def stop(self) -> None:
        """See `Tail.stop`."""
        self._monitor.stop()

    def close(self) -> None:
        """See `Tail.close`."""
        self._monitor.close()
