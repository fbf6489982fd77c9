"""A change from the binlog: values as logged, converted to JSON only when needed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import orjson

from listener.core.logged_change import LoggedChange, LoggedTransaction
from listener.core.source import SourceError
from listener.mysql.codec.table import ABSENT, Kind, Row
from listener.mysql.codec.values import iso_second

__all__ = ["BinlogChange", "Transaction"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Transaction(LoggedTransaction):
    """One committed MySQL or MariaDB transaction."""

    __slots__ = ("committed", "file", "gtid", "offset")

    def __init__(
        self, *, gtid: str, file: str, offset: int, committed: int, server: str, epoch: int = 0
    ) -> None:
        """`gtid` is empty if there are none. `committed` is in microseconds since 1970. `file` is one of `server`'s.

        The id consists of values that are the same on every server and replay. `epoch` is only for the order.
        """
        self.is_muted = False
        self.context = None
        self.gtid = gtid
        self.file = file
        self.offset = offset
        self.committed = committed
        place = gtid or f"{file}:{offset}"
        # The time is part of the id, because numbers and files start again after a RESET.
        name = gtid or f"{server}:{file}:{offset}"
        self.id_head = f"{name.replace(':', '-')}-{committed:X}-".encode()
        self.position_head = (f"{place}@{epoch}:" if epoch else f"{place}:").encode()
        seconds, micro = divmod(committed, 1_000_000)
        self.tail = b'","committed_at":"%b.%06d+00:00"}' % (iso_second(seconds), micro)

    @property
    def committed_at(self) -> datetime:
        return _EPOCH + timedelta(microseconds=self.committed)


class BinlogChange(LoggedChange[Kind, Transaction, Row]):
    """A change of a MySQL or MariaDB row."""

    __slots__ = ()

    def to_json(self, columns: tuple[str, ...] | None = None) -> bytes:
        """Return the argument that a task receives, as JSON with only `columns` in its rows.

        Raise SourceError if a value does not fit its type.
        """
        kind, old, new = self._kind, self._old, self._new
        table = kind.table
        change_id, position = self.stamp
        try:
            before = b"null" if old is None else table.render(old, columns)
            after = b"null" if new is None else table.render(new, columns)
        except SourceError as error:
            raise SourceError(
                f"{error.message} It is at {self.position}.", hint=error.hint, code=error.code
            ) from error
        missing = table.absent(columns) if kind.is_whole else self._missing(columns)
        return b'{"id":"%b%b%b,"after":%b,"unavailable":[%b],"position":"%b%b' % (
            change_id, kind.head, before, after, missing, position, self.commit.tail,
        )  # fmt: skip

    def changed(self, column: str) -> bool | None:
        """Return whether the column's value differs from before; None if the source did not send both."""
        if self._kind.event != "update":
            return True
        place = self._kind.table.index.get(column)
        if place is None or self._new is None or self._old is None:
            return None
        old, new = self._old[place], self._new[place]
        if new is ABSENT:
            return False  # MINIMAL and NOBLOB leave out unchanged values
        if old is ABSENT:
            return None
        return bool(old != new)

    def changed_columns(self) -> tuple[str, ...] | None:
        """Return the columns whose values an update changed; None if the source did not send the old row."""
        if self._old is None or self._new is None:
            return None
        return tuple(name for name in self._kind.table.names if self.changed(name))

    def of_current_row(self) -> BinlogChange | None:
        """Return the meaning of the change for the current rows of a table with system versioning.

        MariaDB logs a DELETE as an update of the row's end, and an UPDATE as an update and an insert of the old row.
        None if it only concerns history.
        """
        kind, old, new = self._kind, self._old, self._new
        table = kind.table
        was = old is not None and table.is_current(old)
        is_now = new is not None and table.is_current(new)
        if old is None or new is None or was == is_now:
            return self if was or is_now else None
        kind = table.insert if is_now else table.delete
        old, new = (None, new) if is_now else (old, None)
        return BinlogChange(
            kind if self._kind.is_whole else kind.in_part, old, new, self.commit, self.ordinal
        )

    @property
    def rows(self) -> Iterator[Row]:
        """The row before and after, as far as they are in the log."""
        return (row for row in (self._old, self._new) if row is not None)

    def key_in(self, row: Row, names: tuple[str, ...]) -> bytes | None:
        """Return these columns of one of its rows as JSON; None if one of them is missing."""
        table = self._kind.table
        return None if any(table.is_missing(row, name) for name in names) else table.render(row, names)

    @property
    def committed_at(self) -> datetime:
        return self.commit.committed_at

    def _old_json(self, row: Row, columns: tuple[str, ...] | None = None) -> bytes:
        return self._kind.table.render(row, columns)

    _new_json = _old_json

    def _missing(self, columns: tuple[str, ...] | None) -> bytes:
        """Return the names, as the inside of a JSON list, of the columns that a row of this change lacks."""
        table, old, new = self._kind.table, self._old, self._new
        if (old is None or ABSENT not in old) and (new is None or ABSENT not in new):
            return table.absent(columns)
        missing = [
            name
            for name in (table.names if columns is None else columns)
            if (new is not None and table.is_missing(new, name))
            or (old is not None and table.is_missing(old, name))
        ]
        return orjson.dumps(missing)[1:-1]
