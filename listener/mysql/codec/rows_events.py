"""Events that hold rows: a description of each table, then its rows, inserted, updated or deleted.

An event holds at least one row. With `binlog_row_image=MINIMAL` a row may be without any column (`INSERT INTO t ()
VALUES ()`), and then it has no bytes. Such an event holds exactly one row. The server's own replicas read it so, MySQL
refuses to log a second one, and MariaDB leaves out all columns only if the primary key has its constant default. (A
BLACKHOLE table keeps no key unique, and no rows: several come as one.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from cdc_tasks.routing.contexts import CONTEXT
from cdc_tasks.routing.enqueued import ENQUEUE, MESSAGE_PREFIX, EnqueuedTask
from listener.core.source import SourceError
from listener.mysql.codec import compressed_events
from listener.mysql.codec.change import BinlogChange
from listener.mysql.codec.json_binary import patch
from listener.mysql.codec.marks import read_mark
from listener.mysql.codec.table import ABSENT, Image, Row, Table
from listener.mysql.codec.table_map import packed_integer
from listener.mysql.codec.transaction_progress import ALL, Progress

__all__ = ["Describe", "RowReader"]

Describe = Callable[[bytes], Table | None]
"""A TABLE_MAP's body to the table; None for one that no route selects and whose rows cannot be read.
Raises SourceError for a selected one."""

_DUMMY_TABLE: Final = b"\xff\xff\xff\0\0\0"
_PARTIAL_UPDATE: Final = 39
_UPDATES: Final = frozenset({24, 31, _PARTIAL_UPDATE, 167, 170})
_VERSION_2: Final = frozenset({30, 31, 32, _PARTIAL_UPDATE, 169, 170, 171})
_FIRST_COMPRESSED: Final = 166
_MOST_TABLES: Final = 20_000  # versions of tables that are cached


# The table, the uncompressed event, where its rows begin, and what reads them: old rows (or the only ones), new rows.
_Rows = tuple[Table, bytes, int, Image, Image]


class RowReader:
    """Reads rows into changes, with the tables that one connection has described."""

    def __init__(
        self, describe: Describe, progress: Progress, on_mark: Callable[[dict[str, Any]], None]
    ) -> None:
        """`on_mark` receives a transaction's marks for the changes that follow."""
        self._describe = describe
        self._on_mark = on_mark
        self._progress = progress
        self._tables: dict[bytes, Table | None] = {}  # by the number that they have in this file of the log
        self._described: dict[bytes, Table] = {}  # by their whole description
        # The same for those of which the catalogue knows more, by number and description: the server gives a table
        # another number when it reads its definition again, so each time that the definition may have changed.
        self._completed: dict[bytes, Table | None] = {}

    def forget_numbers(self) -> None:
        """Drop the numbers of tables: another file of the log begins."""
        self._tables.clear()
        self._completed.clear()

    def table_map(self, event: bytes, _changes: list[BinlogChange]) -> None:
        """Read a table's description. Raise SourceError if rows of a selected table could not be read."""
        number, body = event[19:25], event[27:-4]
        try:
            self._tables[number] = self._described[body]
        except KeyError:
            self._tables[number] = None
            self._tables[number] = self._describe_once(number, body)

    def _describe_once(self, number: bytes, body: bytes) -> Table | None:
        try:
            return self._completed[number + body]
        except KeyError:
            table = self._describe(body)
        if table is None or table.is_completed:
            self._completed[number + body] = table
        else:
            if len(self._described) >= _MOST_TABLES:
                self._described.clear()
            self._described[body] = table
        return table

    def inserted(self, event: bytes, changes: list[BinlogChange]) -> None:
        """Append the changes of an event with new rows."""
        self._read_single(event, changes, is_new=True)

    def deleted(self, event: bytes, changes: list[BinlogChange]) -> None:
        """Append the changes of an event with deleted rows."""
        self._read_single(event, changes, is_new=False)

    def _read_single(self, event: bytes, changes: list[BinlogChange], *, is_new: bool) -> None:
        """Read rows that are new, or were deleted: there is one image of each."""
        rows = self._rows_of(event)
        if rows is None:
            return
        table, event, at, image, _ = rows
        readers, nulls, end = image.readers, image.nulls, len(event) - 4
        kind = table.insert if is_new else table.delete
        if not image.is_complete:
            kind = kind.in_part
        transaction, ordinal, after = self._progress.next_change()
        add, first = changes.append, len(changes)
        unnumbered = 0
        if not table.is_selected:
            if table.is_marks and is_new:
                unnumbered = self._read_marks(table, event, at, image, changes)
            after = ALL
        while True:  # at least one: a row without columns has no bytes
            row, at = readers[event[at : at + nulls]](event, at)
            if ordinal > after:
                old, new = None if is_new else row, row if is_new else None
                add(BinlogChange(kind, old, new, transaction, ordinal))
            ordinal += 1
            if at >= end:
                break
        _check_end(table, at, end)
        if table.row_end is not None:
            _leave_out_history(changes, first)
        if table.is_marks and not is_new and self._progress.unnumbered:
            unnumbered = self._delete_unnumbered(ordinal)
        self._progress.advance(ordinal - unnumbered)

    def _delete_unnumbered(self, ordinal: int) -> int:
        """Return how many of the marks that were deleted up to `ordinal` have no ordinal: those of the context."""
        progress = self._progress
        found = min(progress.unnumbered, ordinal - progress.ordinal)
        progress.unnumbered -= found
        return found

    def _read_marks(
        self, table: Table, event: bytes, at: int, image: Image, changes: list[BinlogChange]
    ) -> int:
        """Process a transaction's marks; return how many of the rows have no ordinal.

        Those of the context have none: so the numbers of its changes count from 1, as in PostgreSQL's log.
        """
        progress, unnumbered, end = self._progress, 0, len(event) - 4
        ordinal = progress.ordinal
        while at < end:
            row, at = image.readers[event[at : at + image.nulls]](event, at)
            says = read_mark(table, row)
            if ENQUEUE in says:
                self._enqueue(says[ENQUEUE], ordinal, changes)
            else:
                self._on_mark(says)
                if CONTEXT in says:
                    unnumbered += 1
                    continue
            ordinal += 1
        progress.unnumbered += unnumbered
        return unnumbered

    def _enqueue(self, fields: Any, ordinal: int, changes: list[Any]) -> None:
        transaction, _, after = self._progress.next_unmuted_change()
        if ordinal > after:
            changes.append(EnqueuedTask.read(fields, transaction, ordinal, MESSAGE_PREFIX))

    def table_of(self, event: bytes) -> Table | None:
        """Return the table of an event with rows; None if unknown."""
        return self._tables.get(event[19:25])

    def updated(self, event: bytes, changes: list[BinlogChange]) -> None:
        """Append the changes of an event with rows as they were and as they are."""
        rows = self._rows_of(event)
        if rows is None:
            return
        table, event, at, image, new_image = rows
        is_partial, is_complete = event[4] == _PARTIAL_UPDATE, new_image.is_complete
        is_whole, end = is_complete and image.is_complete and not is_partial, len(event) - 4
        kind = table.update if is_whole else table.update.in_part
        transaction, ordinal, after = self._progress.next_change()
        add, first = changes.append, len(changes)
        if not table.is_selected:
            after = ALL
        while True:
            old, at = image.readers[event[at : at + image.nulls]](event, at)
            places: list[int] = []
            if is_partial:
                places, at = _partial_columns(event, at, table.json_places)
            new, at = new_image.readers[event[at : at + new_image.nulls]](event, at)
            if ordinal > after:
                if places:
                    new = _patched(old, new, places)
                if not is_complete:
                    new = _filled(old, new)
                add(BinlogChange(kind, old, new, transaction, ordinal))
            ordinal += 1
            if at >= end:
                break
        _check_end(table, at, end)
        if table.row_end is not None:
            _leave_out_history(changes, first)
        self._progress.advance(ordinal)

    def truncated(self, schema: str, name: str, changes: list[BinlogChange]) -> None:
        """Append the change of a table that was truncated."""
        table = self._describe(b"".join((_counted(schema), _counted(name), b"\0\0")))
        transaction, ordinal, after = self._progress.next_change()
        if table is not None and table.is_selected and ordinal > after:
            changes.append(BinlogChange(table.truncate, None, None, transaction, ordinal))
        self._progress.advance(ordinal + 1)

    def _rows_of(self, event: bytes) -> _Rows | None:
        """Return the parts of the event; None if its rows are not needed and cannot be read."""
        kind, number = event[4], event[19:25]
        if number == _DUMMY_TABLE:
            return None
        try:
            table = self._tables[number]
        except KeyError:
            raise SourceError(
                "rows of a table that it did not describe.",
                hint="Update cdc-tasks, and report this with the server's version.",
                code="undecodable",
            ) from None
        if table is None:
            return None
        at = 27 + (int.from_bytes(event[27:29], "little") if kind in _VERSION_2 else 0)
        count, at = packed_integer(event, at)
        if count != len(table.layouts):
            raise _unreadable(table, f"they have {count} columns, but the table {len(table.layouts)}")
        size = (count + 7) // 8
        image = new_image = table.image(event[at : at + size])
        at += size
        if kind in _UPDATES:
            new_image = table.image(event[at : at + size])
            at += size
        if kind >= _FIRST_COMPRESSED:
            event = compressed_events.uncompress_rest(event, at)
        if image.is_empty and new_image.is_empty and at < len(event) - 4:
            raise _unreadable(table, "they have no columns, but they have bytes")
        return table, event, at, image, new_image


def _check_end(table: Table, at: int, end: int) -> None:
    """Raise SourceError if the last row does not end with the event: then all rows were read incorrectly."""
    if at != end:
        raise _unreadable(table, "the last one does not end with its event")


def _leave_out_history(changes: list[BinlogChange], first: int) -> None:
    """Replace the changes from `first` on by those of current rows: MariaDB keeps history in the table itself."""
    current = [each.of_current_row() for each in changes[first:]]
    changes[first:] = [each for each in current if each is not None]


def _unreadable(table: Table, why: str) -> SourceError:
    return SourceError(
        f"rows of {table.schema}.{table.name} that cannot be read: {why}.",
        hint="Update cdc-tasks, and report this with the server's version.",
        code="undecodable",
    )


def _counted(name: str) -> bytes:
    encoded = name.encode()
    return b"%c%b\0" % (len(encoded), encoded)


def _partial_columns(event: bytes, at: int, places: list[int]) -> tuple[list[int], int]:
    """Return which JSON columns of a row hold differences instead of documents, and where the row begins."""
    options, at = packed_integer(event, at)
    if not options & 1:
        return [], at
    size = (len(places) + 7) // 8
    bitmap = int.from_bytes(event[at : at + size], "little")
    return [place for bit, place in enumerate(places) if bitmap >> bit & 1], at + size


def _patched(old: Row, new: Row, places: list[int]) -> Row:
    row = list(new)
    for place in places:
        if row[place] is None or row[place] is ABSENT:
            continue
        whole = isinstance(old[place], bytes)
        row[place] = patch(old[place], row[place]) if whole else ABSENT
    return tuple(row)


def _filled(old: Row, new: Row) -> Row:
    """Fill in from the old row the unchanged values that an incomplete row image leaves out."""
    return tuple(was if value is ABSENT else value for was, value in zip(old, new, strict=True))
