"""A change from PostgreSQL's log: kept as server text, and decoded only when used."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import compress
from operator import ne

import orjson

from listener.core.logged_change import LoggedChange, LoggedTransaction
from listener.postgres.codec.table import NOT_PLAIN, Kind, OldRow
from listener.postgres.codec.tuple_data import UNCHANGED, Row
from listener.postgres.log.position import format_lsn

__all__ = ["Transaction", "WALChange"]

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # the origin of PostgreSQL's timestamps


class Transaction(LoggedTransaction):
    """One committed PostgreSQL transaction."""

    __slots__ = ("commit_lsn", "committed", "committed_at")

    def __init__(self, commit_lsn: int, committed: int, source: str, era: str = "") -> None:
        """Take the commit's LSN and time; `committed` is in microseconds since 2000-01-01 UTC.

        `source` names the cluster; `era` is the prefix of positions.
        """
        self.commit_lsn = commit_lsn
        self.committed = committed
        self.is_muted = False
        self.context = None
        self.committed_at = _EPOCH + timedelta(microseconds=committed)
        # With the time: after a restore, or a failover that lost commits, another transaction may have the same LSN.
        self.id_head = b"%b-%X-%X-" % (source.encode(), commit_lsn, committed)
        self.position_head = f"{era}{format_lsn(commit_lsn)}:".encode()
        self.tail = b'","committed_at":"%b"}' % self.committed_at.isoformat(timespec="microseconds").encode()


class WALChange(LoggedChange[Kind, Transaction, Row]):
    """A PostgreSQL change."""

    __slots__ = ()

    is_of_texts = True

    def to_json(self, columns: tuple[str, ...] | None = None) -> bytes:
        """Return the argument that a task receives, as JSON with only `columns` in its rows."""
        kind = self._kind
        change_id, position = self.stamp
        write = kind.writers.get(columns) or kind.compile(columns)
        try:
            return write(self._old, self._new, change_id, position, self.commit.tail)
        except NOT_PLAIN:
            return self._to_json_with_care(columns)

    def _to_json_with_care(self, columns: tuple[str, ...] | None) -> bytes:
        kind, old, new = self._kind, self._old, self._new
        change_id, position = self.stamp
        before = b"null" if old is None else kind.table.render(old, kind.old_columns(columns))
        after = b"null" if new is None else kind.table.render(new, columns)
        return b'{"id":"%b%b%b,"after":%b,"unavailable":[%b],"position":"%b%b' % (
            change_id, kind.head, before, after, self._missing(columns), position, self.commit.tail,
        )  # fmt: skip

    def row_json(self, columns: tuple[str, ...]) -> bytes:
        """Return `columns` of `row` as a JSON object, without those that the server did not send."""
        try:
            return self._kind.table.renderers[columns](self._new)  # type: ignore[arg-type]  # None is not plain
        except NOT_PLAIN:
            return super().row_json(columns)

    def changed(self, column: str) -> bool | None:
        """Return whether the column's value differs from before; None if the server did not send both values."""
        if self._kind.event != "update":
            return True
        relation, old, new = self._kind.table, self._old, self._new
        place = relation.index.get(column)
        if place is None or new is None:
            return None
        if new[place].__class__ is not bytes and relation.is_missing(new, column):
            return False  # an unchanged TOAST value
        if old is None or (self._kind.old is OldRow.KEY and not relation.columns[place].key):
            return None
        return old[place] != new[place]

    def changed_columns(self) -> tuple[str, ...] | None:
        """Return the columns whose values an update changed; None if the server did not send the old row."""
        old, new = self._old, self._new
        if old is None or new is None or self._kind.old is OldRow.KEY:
            return None
        names = compress(self._kind.table.names, map(ne, old, new))
        if UNCHANGED not in new:
            return tuple(names)
        index = self._kind.table.index
        return tuple(name for name in names if new[index[name]] is not UNCHANGED)

    @property
    def rows(self) -> Iterator[Row]:
        """The old and the new row, as far as the server sent them: strings in the order of `places`."""
        return (row for row in (self._old, self._new) if row is not None)

    @property
    def places(self) -> dict[str, int]:
        """The index of each column in a row."""
        return self._kind.table.index

    @property
    def committed_at(self) -> datetime:
        return self.commit.committed_at

    def _old_json(self, row: Row, columns: tuple[str, ...] | None = None) -> bytes:
        return self._kind.table.render(row, self._kind.old_columns(columns))

    def _new_json(self, row: Row, columns: tuple[str, ...] | None = None) -> bytes:
        return self._kind.table.render(row, columns)

    def _missing(self, columns: tuple[str, ...] | None) -> bytes:
        """Return the names, as the inside of a JSON list, of the columns that a row of this change lacks."""
        relation, old, new = self._kind.table, self._old, self._new
        keys_only = self._kind.old is OldRow.KEY
        if not keys_only and (old is None or UNCHANGED not in old) and (new is None or UNCHANGED not in new):
            return relation.absent(columns)
        missing = [
            name
            for name in (relation.names if columns is None else columns)
            if (new is not None and relation.is_missing(new, name))
            or (old is not None and relation.is_missing(old, name))
            or (keys_only and name not in relation.key_columns)
        ]
        return orjson.dumps(missing)[1:-1]
