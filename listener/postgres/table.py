"""A relation as the log describes it, compiled: rows of server's text go in, JSON comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from struct import Struct
from typing import Final

import orjson

from listener import json_text
from listener.postgres.values import ValueType, converter, verbatim

__all__ = ["UNCHANGED", "Column", "Kind", "Row", "Table", "split_tuple"]


class _Unchanged:
    """Marks a value that the server did not send, because it did not change: not NULL."""

    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED: Final = _Unchanged()

Row = Sequence[bytes | _Unchanged | None]  # in the order of the table's columns: text, NULL, not sent
Render = Callable[[Row], bytes]

_TEXT, _NULL = ord("t"), ord("n")
_PAD = b"\0\0\0\0"  # lets kind and length be read at once even where the last column has no length
_kind_and_length = Struct(">BI").unpack_from


def split_tuple(data: bytes, start: int) -> tuple[list[bytes | _Unchanged | None], int]:
    """Cut a TupleData (manual, "Logical Replication Message Formats") into its values; returns them and its end."""
    row: list[bytes | _Unchanged | None] = []
    add = row.append
    count = data[start] << 8 | data[start + 1]
    data += _PAD
    at = start + 2
    for _ in range(count):
        kind, length = _kind_and_length(data, at)
        if kind == _TEXT:
            at += 5
            end = at + length
            add(data[at:end])
            at = end
        else:
            add(None if kind == _NULL else UNCHANGED)
            at += 1
    return row, at


@dataclass(frozen=True, slots=True)
class Column:
    """One column that the source sends."""

    name: str
    type: ValueType
    key: bool  # part of the replica identity


class Kind:
    """What all changes of one table and event have in common, made once."""

    __slots__ = ("event", "head", "name", "old_is_key", "table")

    def __init__(self, table: Table, event: str, *, old_is_key: bool = False) -> None:
        """`old_is_key`: the old row has only the columns of the replica identity."""
        self.table = table
        self.event = event
        self.old_is_key = old_is_key
        self.name = (table.schema, table.name, event)
        self.head = b'","schema":%b,"table":%b,"event":"%b","before":' % (
            orjson.dumps(table.schema),
            orjson.dumps(table.name),
            event.encode(),
        )


class Table:
    """One version of a table's definition, as of some place in the log."""

    __slots__ = (
        "_absent",
        "_careful",
        "_renderers",
        "columns",
        "delete",
        "delete_by_key",
        "identity",
        "index",
        "insert",
        "key_columns",
        "name",
        "names",
        "schema",
        "truncate",
        "update",
        "update_by_key",
    )

    def __init__(self, schema: str, name: str, columns: Sequence[Column], *, identity: str) -> None:
        """`identity` is pg_class.relreplident: d, n, f or i."""
        self.schema = schema
        self.name = name
        self.columns = tuple(columns)
        self.identity = identity
        self.names = tuple(column.name for column in self.columns)
        self.key_columns = tuple(column.name for column in self.columns if column.key)
        self.index = {column: place for place, column in enumerate(self.names)}
        self.insert, self.update, self.delete, self.truncate = (
            Kind(self, event) for event in ("insert", "update", "delete", "truncate")
        )
        self.update_by_key, self.delete_by_key = (
            Kind(self, event, old_is_key=True) for event in ("update", "delete")
        )
        self._renderers: dict[tuple[str, ...] | None, Render] = {}
        self._careful = lru_cache(maxsize=100)(partial(self._compile, careful=True))
        self._absent: dict[tuple[str, ...] | None, bytes] = {None: b""}

    def render(self, row: Row, columns: tuple[str, ...] | None) -> bytes:
        """Return `row` as a JSON object of `columns` (None: all), without those that are missing."""
        try:
            renderer = self._renderers[columns]
        except KeyError:
            renderer = self._renderers[columns] = self._compile(columns)
        try:
            return renderer(row)
        except (AttributeError, TypeError, UnicodeDecodeError):
            # A value that is not there, or text that is not UTF-8: rare, so they are met this way.
            present = tuple(name for name in columns or self.names if not self.is_missing(row, name))
            return self._careful(present)(row)

    def absent(self, columns: tuple[str, ...] | None) -> bytes:
        """Return, as the inside of a JSON list, those of `columns` that the table does not have."""
        try:
            return self._absent[columns]
        except KeyError:
            names = [name for name in columns or () if name not in self.index]
            return self._absent.setdefault(columns, orjson.dumps(names)[1:-1])

    def is_missing(self, row: Row, name: str) -> bool:
        """Tell whether `row` has no value, not even NULL, for the column."""
        place = self.index.get(name)
        return place is None or row[place] is UNCHANGED

    def _compile(self, columns: tuple[str, ...] | None, *, careful: bool = False) -> Render:
        """Write the function that renders one row: for a hot path, a loop over columns costs twice as much.

        Where the text is already JSON, and where it is a plain string, not even a call is left; unless
        `careful`, the result raises UnicodeDecodeError where a string is not UTF-8.
        """
        wanted = self.names if columns is None else tuple(name for name in columns if name in self.index)
        template = b"{" + b",".join(_quoted(name) + b":%b" for name in wanted) + b"}"
        known: dict[str, object] = {"template": template, "dumps": orjson.dumps}
        values = []
        for name in wanted:
            place = self.index[name]
            convert = converter(self.columns[place].type)
            if convert is verbatim:
                value = "v"
            elif convert is json_text.string and not careful:
                value = "dumps(v.decode())"
            else:
                known[f"convert{place}"] = convert
                value = f"convert{place}(v)"
            values.append(f"b'null' if (v := row[{place}]) is None else {value}, ")
        render: Render = eval(f"lambda row: template % ({''.join(values)})", known)  # noqa: S307 - places, no outside text
        return render


def _quoted(name: str) -> bytes:
    return orjson.dumps(name).replace(b"%", b"%%")
