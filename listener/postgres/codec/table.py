"""A relation as the log describes it, compiled: rows of server's text go in, JSON comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import lru_cache, partial
from typing import Final

import orjson

from listener.core import row_json
from listener.postgres.codec.tuple_data import UNCHANGED, Row
from listener.postgres.codec.values import ValueType, converter, verbatim

__all__ = ["NOT_PLAIN", "Column", "Kind", "Old", "Table"]

_Names = tuple[str, ...] | None  # of columns; None: all
_Render = Callable[[Row], bytes]
_Write = Callable[[Row | None, Row | None, bytes, bytes, bytes], bytes]

# What compiled functions raise where a value is not there, or a text is not UTF-8: rare, so it is met this way.
NOT_PLAIN: Final = (AttributeError, TypeError, UnicodeDecodeError)


@dataclass(frozen=True, slots=True)
class Column:
    """One column that the source sends."""

    name: str
    type: ValueType
    key: bool  # part of the replica identity


class Old(Enum):
    """What a change has of the old row."""

    NOTHING = auto()
    KEY = auto()  # the columns of the replica identity
    ALL = auto()


class Kind:
    """What all changes of one table and event have in common, made once."""

    __slots__ = ("_has_new", "event", "head", "name", "old", "table", "writers")

    def __init__(self, table: Table, event: str, old: Old = Old.NOTHING, *, has_new: bool = True) -> None:
        """`has_new`: there is a new row."""
        self.table = table
        self.event = event
        self.old = old
        self.name = (table.schema, table.name, event)
        self.head = b'","schema":%b,"table":%b,"event":"%b","before":' % (
            orjson.dumps(table.schema),
            orjson.dumps(table.name),
            event.encode(),
        )
        self.writers: dict[_Names, _Write] = {}  # by the columns that they write: see `compile`
        self._has_new = has_new

    def old_columns(self, columns: _Names) -> _Names:
        """Return those of `columns` that the old row has."""
        if self.old is not Old.KEY:
            return columns
        keys = self.table.key_columns
        return keys if columns is None else tuple(name for name in columns if name in keys)

    def compile(self, columns: _Names) -> _Write:
        """Write the function that makes JSON of a whole change, with `columns` in its rows; it raises NOT_PLAIN.

        It takes the old row, the new row, the id, the position, and the end of the JSON.
        """
        table = self.table
        old, olds = table.outline("old", self.old_columns(columns)) if self.old is not Old.NOTHING else _NULL
        new, news = table.outline("new", columns) if self._has_new else _NULL
        known = table.key_columns if self.old is Old.KEY else table.names
        missing = [name for name in (table.names if columns is None else columns) if name not in known]
        template = b'{"id":"%%b%b%b,"after":%b,"unavailable":%b,"position":"%%b%%b' % (
            _literal(self.head), old, new, _literal(orjson.dumps(missing)),
        )  # fmt: skip
        filling = ", ".join(("change_id", *olds, *news, "position", "tail"))
        write: _Write = table.compiled("old, new, change_id, position, tail", template, filling)
        self.writers[columns] = write
        return write


class Table:
    """One version of a table's definition, as of some place in the log."""

    __slots__ = (
        "_absent",
        "_careful",
        "_key_places",
        "_keyed",
        "_known",
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
        "update_alone",
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
        self._key_places = [place for place, column in enumerate(self.columns) if column.key]
        self._keyed = lru_cache(maxsize=100)(self._with_key)
        self.insert = Kind(self, "insert")
        self.update_alone = Kind(self, "update")
        self.update_by_key = Kind(self, "update", Old.KEY)
        self.update = Kind(self, "update", Old.ALL)
        self.delete_by_key = Kind(self, "delete", Old.KEY, has_new=False)
        self.delete = Kind(self, "delete", Old.ALL, has_new=False)
        self.truncate = Kind(self, "truncate", has_new=False)
        self._renderers: dict[_Names, _Render] = {}
        self._careful = lru_cache(maxsize=100)(partial(self._compile, careful=True))
        self._absent: dict[_Names, bytes] = {None: b""}
        self._known: dict[str, Callable[..., bytes]] = {"dumps": orjson.dumps}
        self._known |= {f"convert{at}": converter(column.type) for at, column in enumerate(self.columns)}

    def keyed_by(self, key: Row) -> Table:
        """Return the table with the key that this old row has, NULL elsewhere: a partition's need not be its root's."""
        places = self._key_places
        if key.count(None) == len(key) - len(places) and None not in [key[place] for place in places]:
            return self
        return self._keyed(tuple(value is not None for value in key))

    def _with_key(self, is_key: tuple[bool, ...]) -> Table:
        columns = [replace(column, key=key) for column, key in zip(self.columns, is_key, strict=True)]
        return Table(self.schema, self.name, columns, identity=self.identity)

    def render(self, row: Row, columns: _Names) -> bytes:
        """Return `row` as a JSON object of `columns`, without those that are missing."""
        try:
            renderer = self._renderers[columns]
        except KeyError:
            renderer = self._renderers[columns] = self._compile(columns)
        try:
            return renderer(row)
        except NOT_PLAIN:
            present = tuple(name for name in columns or self.names if not self.is_missing(row, name))
            return self._careful(present)(row)

    def absent(self, columns: _Names) -> bytes:
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

    def outline(self, row: str, columns: _Names, *, careful: bool = False) -> tuple[bytes, list[str]]:
        """Return a template of a JSON object of `columns`, and the expressions that fill it in from the variable `row`.

        For a hot path: a loop over columns would cost twice as much. Where the text is already JSON, and where
        it is a plain string, not even a call is left; unless `careful`, bytes that are not UTF-8 are an error.
        """
        wanted = self.names if columns is None else tuple(name for name in columns if name in self.index)
        template = b"{" + b",".join(_literal(orjson.dumps(name)) + b":%b" for name in wanted) + b"}"
        values = []
        for place in map(self.index.__getitem__, wanted):
            convert = self._known[f"convert{place}"]
            if convert is verbatim:
                value = "v"
            elif convert is row_json.string and not careful:
                value = "dumps(v.decode())"
            else:
                value = f"convert{place}(v)"
            values.append(f"b'null' if (v := {row}[{place}]) is None else {value}")
        return template, values

    def compiled(self, parameters: str, template: bytes, filling: str) -> Callable[..., bytes]:
        """Return the function of `parameters` that fills the template in."""
        code = f"lambda {parameters}: template % ({filling},)"
        function: Callable[..., bytes] = eval(code, {**self._known, "template": template})  # noqa: S307 - places, no outside text
        return function

    def _compile(self, columns: _Names, *, careful: bool = False) -> _Render:
        template, values = self.outline("row", columns, careful=careful)
        return self.compiled("row", template, ", ".join(values)) if values else lambda _row: b"{}"


_NULL: Final[tuple[bytes, list[str]]] = (b"null", [])


def _literal(text: bytes) -> bytes:
    """Return `text` as a template has it."""
    return text.replace(b"%", b"%%")
