"""A table as described in the log, compiled to functions from rows of server text to JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import lru_cache, partial
from typing import Final

import orjson

from listener.core import row_json
from listener.core.row_json import NOT_PLAIN, Columns, LoggedKind, LoggedTable, literal
from listener.postgres.codec.tuple_data import UNCHANGED, Row
from listener.postgres.codec.values import ValueType, converter, verbatim

__all__ = ["NOT_PLAIN", "Column", "Kind", "OldRow", "Table"]

_Write = Callable[[Row | None, Row | None, bytes, bytes, bytes], bytes]


@dataclass(frozen=True, slots=True)
class Column:
    """One column that the source sends."""

    name: str
    type: ValueType
    key: bool  # part of the replica identity


class OldRow(Enum):
    """The part of the old row that a change contains."""

    NOTHING = auto()
    KEY = auto()  # the columns of the replica identity
    ALL = auto()


class Kind(LoggedKind["Table"]):
    """The data common to all changes of one table and event, created once."""

    __slots__ = ("has_new", "old", "writers")

    def __init__(
        self, table: Table, event: str, old: OldRow = OldRow.NOTHING, *, has_new: bool = True
    ) -> None:
        """`has_new`: there is a new row."""
        super().__init__(table, event)
        self.old = old
        self.writers: dict[Columns, _Write] = {}  # by the columns that they write: see `compile`
        self.has_new = has_new

    def old_columns(self, columns: Columns) -> Columns:
        """Return the `columns` that the old row has."""
        if self.old is not OldRow.KEY:
            return columns
        keys = self.table.key_columns
        return keys if columns is None else tuple(name for name in columns if name in keys)

    def compile(self, columns: Columns) -> _Write:
        """Compile the function that renders a whole change as JSON, with `columns` in its rows; it raises NOT_PLAIN.

        It takes the old row, the new row, the id, the position, and the end of the JSON.
        """
        table = self.table
        old, olds = (
            table.outline("old", self.old_columns(columns)) if self.old is not OldRow.NOTHING else _NULL
        )
        new, news = table.outline("new", columns) if self.has_new else _NULL
        known = table.key_columns if self.old is OldRow.KEY else table.names
        missing = [name for name in (table.names if columns is None else columns) if name not in known]
        template = b'{"id":"%%b%b%b,"after":%b,"unavailable":%b,"position":"%%b%%b' % (
            literal(self.head), old, new, literal(orjson.dumps(missing)),
        )  # fmt: skip
        values = ("change_id", *olds, *news, "position", "tail")
        write: _Write = table.compiled("old, new, change_id, position, tail", template, values)
        self.writers[columns] = write
        return write


class Table(LoggedTable[Row]):
    """One version of a table's definition, as of an LSN."""

    __slots__ = (
        "_careful",
        "_key_places",
        "_keyed",
        "_known",
        "columns",
        "delete",
        "delete_by_key",
        "identity",
        "insert",
        "key_columns",
        "truncate",
        "update",
        "update_alone",
        "update_by_key",
    )

    def __init__(self, schema: str, name: str, columns: Sequence[Column], *, identity: str) -> None:
        """`identity` is pg_class.relreplident: d, n, f or i."""
        super().__init__(schema, name, {column.name: place for place, column in enumerate(columns)})
        self.columns = tuple(columns)
        self.identity = identity
        self.key_columns = tuple(column.name for column in self.columns if column.key)
        self._key_places = [place for place, column in enumerate(self.columns) if column.key]
        self._keyed = lru_cache(maxsize=100)(self._with_key)
        self.insert = Kind(self, "insert")
        self.update_alone = Kind(self, "update")
        self.update_by_key = Kind(self, "update", OldRow.KEY)
        self.update = Kind(self, "update", OldRow.ALL)
        self.delete_by_key = Kind(self, "delete", OldRow.KEY, has_new=False)
        self.delete = Kind(self, "delete", OldRow.ALL, has_new=False)
        self.truncate = Kind(self, "truncate", has_new=False)
        self._careful = lru_cache(maxsize=100)(partial(self._compile, careful=True))
        self._known = {f"convert{at}": converter(column.type) for at, column in enumerate(self.columns)}

    def keyed_by(self, key: Row) -> Table:
        """Return the table with the key of this old row, whose other columns are NULL.

        A partition's replica identity may differ from its root's.
        """
        places = self._key_places
        if key.count(None) == len(key) - len(places) and None not in [key[place] for place in places]:
            return self
        return self._keyed(tuple(value is not None for value in key))

    def _with_key(self, is_key: tuple[bool, ...]) -> Table:
        columns = [replace(column, key=key) for column, key in zip(self.columns, is_key, strict=True)]
        return Table(self.schema, self.name, columns, identity=self.identity)

    def is_missing(self, row: Row, name: str) -> bool:
        """Return whether `row` has no value, not even NULL, for the column."""
        place = self.index.get(name)
        return place is None or row[place] is UNCHANGED

    def _expression(self, value: str, place: int, *, careful: bool) -> tuple[bytes, str]:
        convert = self._known[f"convert{place}"]
        if convert is verbatim:
            text = "v"
        elif convert is row_json.string and not careful:
            text = "dumps(v.decode())"
        else:
            text = f"convert{place}(v)"
        return b"%b", f"b'null' if (v := {value}) is None else {text}"

    def _converters(self) -> Mapping[str, Callable[..., bytes]]:
        return self._known

    def _render_carefully(self, row: Row, columns: Columns) -> bytes:
        present = tuple(name for name in columns or self.names if not self.is_missing(row, name))
        return self._careful(present)(row)


_NULL: Final[tuple[bytes, list[str]]] = (b"null", [])
