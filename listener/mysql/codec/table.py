"""A table as described in a binlog, compiled: converts bytes of rows to values, and these to JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from struct import Struct
from typing import Any, Final

import orjson

from listener.core import row_json
from listener.core.row_json import Columns, LoggedKind, LoggedTable
from listener.core.source import SourceError
from listener.mysql.codec.column_layout import Layout
from listener.mysql.codec.table_map import ColumnType, TableMap
from listener.mysql.codec.values import UNREADABLE

__all__ = ["ABSENT", "Image", "Kind", "Row", "Table"]


class _Absent:
    """Marks a value that the server did not log; it is not NULL."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()

Row = tuple[Any, ...]  # in the order of the table's columns: as its layout reads it, None for NULL, or ABSENT
Read = Callable[[bytes, int], tuple[Row, int]]

# Up to this many patterns of NULLs get a compiled reader; rows with others are read column by column.
_MOST_READERS: Final = 64


# Until when a current row is valid, in a table with system versioning: the last moment of a TIMESTAMP, since MariaDB
# 11.5 of an unsigned one.
_FOREVER: Final = frozenset({b"\x7f\xff\xff\xff\x0f\x42\x3f", b"\xff\xff\xff\xff\x0f\x42\x3f"})


class Kind(LoggedKind["Table"]):
    """The data common to all changes of one table and event, created once."""

    __slots__ = ("in_part", "is_whole")

    def __init__(self, table: Table, event: str, *, is_whole: bool = True) -> None:
        """`is_whole`: no column is absent from its rows; `in_part` is the kind of those from which one may be."""
        super().__init__(table, event)
        self.is_whole = is_whole
        self.in_part = Kind(table, event, is_whole=False) if is_whole else self


class Table(LoggedTable[Row]):
    """One version of a table's definition, as of a position in the log."""

    __slots__ = (
        "_images",
        "delete",
        "insert",
        "is_completed",
        "is_marks",
        "is_selected",
        "json_places",
        "layouts",
        "nullable",
        "row_end",
        "truncate",
        "update",
    )

    def __init__(
        self,
        table_map: TableMap,
        layouts: Sequence[Layout],
        *,
        is_selected: bool,
        is_completed: bool = False,
        is_marks: bool = False,
        hidden: frozenset[str] = frozenset(),
        row_end: str = "",
    ) -> None:
        """`is_completed`: with what the catalogue says now. `hidden`: the server's own columns, which are never shown.

        `is_marks`: its rows are marks of their transaction, see `marks.py`. `row_end`: the column that shows until
        when a row is valid, in a table with system versioning.
        """
        columns = {column.name: place for place, column in enumerate(table_map.columns)}
        shown = {name: place for name, place in columns.items() if name not in hidden}
        super().__init__(table_map.schema, table_map.name, shown)
        self.layouts = tuple(layouts)
        self.nullable = tuple(column.nullable for column in table_map.columns)
        self.row_end = columns.get(row_end)
        self.is_selected = is_selected
        self.is_completed = is_completed
        self.is_marks = is_marks
        self.json_places = [
            place for place, column in enumerate(table_map.columns) if column.type is ColumnType.JSON
        ]
        self.insert, self.update, self.delete, self.truncate = (
            Kind(self, event) for event in ("insert", "update", "delete", "truncate")
        )
        self._images: dict[bytes, Image] = {}

    def image(self, present: bytes) -> Image:
        """Return the reader for rows of these columns; `present` is the event's bitmap."""
        try:
            return self._images[present]
        except KeyError:
            return self._images.setdefault(present, Image(self.layouts, present))

    def is_current(self, row: Row) -> bool:
        """Return whether a row of a table with system versioning is a current one, and not history."""
        end = None if self.row_end is None else row[self.row_end]
        return end is ABSENT or end in _FOREVER

    def is_missing(self, row: Row, name: str) -> bool:
        """Return whether `row` has no value, not even NULL, for the column."""
        place = self.index.get(name)
        return place is None or row[place] is ABSENT

    def _expression(self, value: str, place: int, *, careful: bool) -> tuple[bytes, str]:  # noqa: ARG002 - see `_render_carefully`
        layout = self.layouts[place]
        if layout.is_integer and not self.nullable[place]:
            return b"%d", value
        if layout.is_integer:
            text = "b'%d' % v"
        elif layout.is_utf8:
            text = "dumps(v.decode())"
        else:
            text = f"convert{place}(v)"
        return b"%b", f"b'null' if (v := {value}) is None else {text}"

    def _converters(self) -> Mapping[str, Callable[..., bytes]]:
        return {f"convert{place}": layout.convert for place, layout in enumerate(self.layouts)}

    def _render_carefully(self, row: Row, columns: Columns) -> bytes:
        parts = []
        for name in self.names if columns is None else columns:
            if self.is_missing(row, name):
                continue
            place = self.index[name]
            value, layout = row[place], self.layouts[place]
            convert = row_json.string if layout.is_utf8 else layout.convert
            try:
                text = b"null" if value is None else convert(value)
            except UNREADABLE as error:
                raise SourceError(
                    f"A value of {self.schema}.{self.name}.{name} cannot be read: {error!r}.",
                    hint="Update cdc-tasks, and report this with the server's version.",
                    code="undecodable",
                ) from error
            parts.append(b"%b:%b" % (orjson.dumps(name), text))
        return b"{%b}" % b",".join(parts)


class Image:
    """Reads rows that have the same columns of the table."""

    __slots__ = ("_layouts", "_places", "_width", "is_complete", "is_empty", "nulls", "readers")

    def __init__(self, layouts: Sequence[Layout], present: bytes) -> None:
        bitmap = int.from_bytes(present, "little")
        self._places = [place for place in range(len(layouts)) if bitmap >> place & 1]
        self._layouts = [layouts[place] for place in self._places]
        self._width = len(layouts)
        self.is_complete = len(self._places) == self._width
        self.is_empty = not self._places
        self.nulls = (len(self._places) + 7) // 8  # bytes at the start of a row: which columns are NULL
        self.readers: dict[bytes, Read] = _Readers(self)

    def compile(self, nulls: int) -> Read:
        """Return a function that reads rows with these NULLs: it unpacks neighbours of a fixed size together."""
        known: dict[str, Any] = {"ABSENT": ABSENT}
        lines: list[str] = []
        run: list[str] = []
        code, size = "<", 0
        row = ["ABSENT"] * self._width

        def flush() -> None:
            nonlocal run, code, size
            if run:
                known[f"read{len(lines)}"] = Struct(code).unpack_from
                lines.append(f"{', '.join(run)}, = read{len(lines)}(data, at)")
                lines.append(f"at += {size}")
            run, code, size = [], "<", 0

        for bit, (place, layout) in enumerate(zip(self._places, self._layouts, strict=True)):
            if nulls >> bit & 1:
                row[place] = "None"
                continue
            row[place] = f"v{place}"
            run.append(f"n{place}" if layout.counted else f"v{place}")
            code += layout.code
            size += layout.size
            if layout.counted:
                flush()
                length = f"int.from_bytes(n{place}, 'little')" if layout.code == "3s" else f"n{place}"
                lines.append(f"end = at + {length}")
                lines.append(f"v{place} = data[at:end]")
                lines.append("at = end")
        flush()
        body = "\n    ".join([f"at += {self.nulls}", *lines, f"return ({', '.join(row)},), at"])
        exec(f"def read(data, at):\n    {body}", known)  # noqa: S102 - places and sizes, no outside text
        read: Read = known["read"]
        return read

    def read_slowly(self, data: bytes, at: int) -> tuple[Row, int]:
        """Read a row column by column."""
        nulls = int.from_bytes(data[at : at + self.nulls], "little")
        at += self.nulls
        row: list[Any] = [ABSENT] * self._width
        for bit, (place, layout) in enumerate(zip(self._places, self._layouts, strict=True)):
            if nulls >> bit & 1:
                row[place] = None
                continue
            (value,) = Struct("<" + layout.code).unpack_from(data, at)
            at += layout.size
            if layout.counted:
                length = value if value.__class__ is int else int.from_bytes(value, "little")
                value = data[at : at + length]
                at += length
            row[place] = value
        return tuple(row), at


class _Readers(dict[bytes, Read]):
    """The functions that read rows, by the bytes that mark the NULL columns."""

    def __init__(self, image: Image) -> None:
        super().__init__()
        self._image = image

    def __missing__(self, nulls: bytes) -> Read:
        if len(self) >= _MOST_READERS:
            return self._image.read_slowly
        read = self[nulls] = self._image.compile(int.from_bytes(nulls, "little"))
        return read
