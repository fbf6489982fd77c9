"""Rows as JSON: code shared by the tables of both sources, and server text as values.

A table compiles one function per set of columns: a loop over the columns would take twice as long.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from struct import error as StructError  # noqa: N812 - an exception's name
from typing import Any, Final, Generic, TypeVar

import orjson

__all__ = ["NOT_PLAIN", "Columns", "LoggedKind", "LoggedTable", "Render", "document", "literal", "string"]

RowT = TypeVar("RowT", bound=Sequence[Any])
TableT = TypeVar("TableT", bound="LoggedTable[Any]")

Columns = tuple[str, ...] | None
"""Column names; None: all."""
Render = Callable[[RowT], bytes]

NOT_PLAIN: Final = (AttributeError, TypeError, ValueError, LookupError, ArithmeticError, StructError)
"""Raised by compiled functions if a value is missing or does not fit its type: rare, so they do not check."""


class LoggedKind(Generic[TableT]):
    """The data common to all changes of one table and event, created once."""

    __slots__ = ("event", "head", "name", "table")

    def __init__(self, table: TableT, event: str) -> None:
        self.table = table
        self.event = event
        self.name = (table.schema, table.name, event)
        self.head = b'","schema":%b,"table":%b,"event":"%b","before":' % (
            orjson.dumps(table.schema),
            orjson.dumps(table.name),
            event.encode(),
        )


class LoggedTable(ABC, Generic[RowT]):
    """One version of a table's definition, as of a position in the log: turns rows into JSON."""

    __slots__ = ("_absent", "index", "name", "names", "renderers", "schema")

    def __init__(self, schema: str, name: str, index: dict[str, int]) -> None:
        """`index` has the index in a row of each shown column, in order."""
        self.schema = schema
        self.name = name
        self.index = index
        self.names = tuple(index)
        self.renderers: dict[Columns, Render[RowT]] = {}  # compiled so far; each may raise NOT_PLAIN
        self._absent: dict[Columns, bytes] = {None: b""}

    @abstractmethod
    def is_missing(self, row: RowT, name: str) -> bool:
        """Return whether `row` has no value, not even NULL, for the column."""

    def render(self, row: RowT, columns: Columns) -> bytes:
        """Return `row` as a JSON object of `columns`, without those that are missing."""
        try:
            renderer = self.renderers[columns]
        except KeyError:
            renderer = self.renderers[columns] = self._compile(columns)
        try:
            return renderer(row)
        except NOT_PLAIN:
            return self._render_carefully(row, columns)

    def absent(self, columns: Columns) -> bytes:
        """Return the `columns` that the table does not have, as the inside of a JSON list."""
        try:
            return self._absent[columns]
        except KeyError:
            names = [name for name in columns or () if name not in self.index]
            return self._absent.setdefault(columns, orjson.dumps(names)[1:-1])

    def outline(self, row: str, columns: Columns, *, careful: bool = False) -> tuple[bytes, list[str]]:
        """Return a template of a JSON object of `columns`, and the expressions that fill it in from the variable `row`.

        Unless `careful`, an expression may raise NOT_PLAIN.
        """
        wanted = self.names if columns is None else tuple(name for name in columns if name in self.index)
        members, values = [], []
        for name in wanted:
            directive, value = self._expression(
                f"{row}[{self.index[name]}]", self.index[name], careful=careful
            )
            members.append(b"%b:%b" % (literal(orjson.dumps(name)), directive))
            values.append(value)
        return b"{%b}" % b",".join(members), values

    def compiled(self, parameters: str, template: bytes, values: Sequence[str]) -> Callable[..., bytes]:
        """Return the function of `parameters` that fills the template in."""
        filling = "".join(f"{value}, " for value in values)
        known = {**self._converters(), "dumps": orjson.dumps, "template": template}
        function: Callable[..., bytes] = eval(f"lambda {parameters}: template % ({filling})", known)  # noqa: S307 - indexes, no outside text
        return function

    def _compile(self, columns: Columns, *, careful: bool = False) -> Render[RowT]:
        template, values = self.outline("row", columns, careful=careful)
        return self.compiled("row", template, values)

    @abstractmethod
    def _expression(self, value: str, place: int, *, careful: bool) -> tuple[bytes, str]:
        """Return how the template formats a column (%b or %d), and the expression for it; `value` is the row's item."""

    @abstractmethod
    def _converters(self) -> Mapping[str, Callable[..., bytes]]:
        """Return the objects that the expressions name."""

    @abstractmethod
    def _render_carefully(self, row: RowT, columns: Columns) -> bytes:
        """Return the same as `render`, for a row that is not plain. Raise SourceError if a value cannot be read."""


def literal(text: bytes) -> bytes:
    """Return `text` escaped for a template."""
    return text.replace(b"%", b"%%")


# --- Values ---------------------------------------------------------------------------------------------

# What a worker's `json.loads` accepts: Python refuses longer integers (`sys.set_int_max_str_digits`). It recurses
# once per level, and the worker's own calls count towards the limit.
_LONGEST_INTEGER = 4300
_DEEPEST_NESTING = 200

# Possessive, and anchored at the start of each run of digits: linear on any document.
_TOO_LONG_INTEGER = re.compile(rb"(?<![0-9])[0-9]{%d}" % (_LONGEST_INTEGER + 1))
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_ONE_KIND_OF_BRACKET = bytes.maketrans(b"{}", b"[]")
_ALL_BUT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def string(text: bytes) -> bytes:
    """Return `text` as a JSON string; a byte that is not UTF-8 becomes a backslash, `x` and two digits."""
    try:
        return orjson.dumps(text.decode())
    except UnicodeDecodeError:
        return orjson.dumps(text.decode(errors="backslashreplace"))


def document(text: bytes) -> bytes:
    """Return a JSON document as it is, or as a JSON string if a worker could not load it."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return string(text)
    if len(text) > _LONGEST_INTEGER and _TOO_LONG_INTEGER.search(text) and not _loads(text):
        return string(text)
    if len(text) > _DEEPEST_NESTING and _is_nested_too_deeply(text):
        return string(text)
    if (b"__type__" in text or b"\\u00" in text) and not _loads(text):
        return string(text)
    return text


def _is_nested_too_deeply(text: bytes) -> bool:
    if text.count(b"{") + text.count(b"[") <= _DEEPEST_NESTING:
        return False
    brackets = _STRINGS.sub(b"", text).translate(_ONE_KIND_OF_BRACKET, _ALL_BUT_BRACKETS)
    for _ in range(_DEEPEST_NESTING):
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


def _loads(text: bytes) -> bool:
    try:
        json.loads(text, object_hook=_refuse_kombu_envelope)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse_kombu_envelope(value: dict[str, Any]) -> None:
    """Refuse an object that kombu would take for a typed value of an unknown type: it would refuse the message."""
    if value.keys() == {"__type__", "__value__"}:
        raise ValueError(value)
