"""Statements in the binlog: which of them end a transaction, empty a table, or have rows that were not logged."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

__all__ = ["Query", "emptied_table", "hides_rows", "parse_query"]

# Sizes of the status variables that stand before the one with the character set.
_STATUS_SIZES: Final = {0: 4, 1: 8, 3: 4}
_COUNTED: Final = {6}
_CATALOG, _CHARSET = 2, 4

_COMMENT = re.compile(r"/\*(?!!|M!).*?\*/|^\s*#[^\n]*\n|^\s*-- [^\n]*\n", re.DOTALL | re.MULTILINE)
_QUOTED = re.compile(r"'(?:[^'\\]|\\.|'')*'|\"(?:[^\"\\]|\\.|\"\")*\"|`(?:[^`]|``)*`", re.DOTALL)
_NAME = r"(?:`(?:[^`]|``)+`|[^\s`.;(]+)"
_TRUNCATE = re.compile(
    rf"TRUNCATE\s+(?:TABLE\s+)?(?:({_NAME})\s*\.\s*)?({_NAME})\s*(?:WAIT\s+\d+|NOWAIT)?\s*;?\s*",
    re.IGNORECASE | re.DOTALL,
)
# What a server writes by itself for a MEMORY table that a restart has emptied.
_EMPTIED = re.compile(r"DELETE FROM (`(?:[^`]|``)+`)\.(`(?:[^`]|``)+`)", re.DOTALL)
_TARGET = re.compile(
    rf"(?:INSERT|REPLACE|UPDATE|DELETE)\b(?:\s+(?:LOW_PRIORITY|DELAYED|HIGH_PRIORITY|IGNORE|QUICK|INTO|FROM))*"
    rf"\s+(?:({_NAME})\s*\.\s*)?({_NAME})",
    re.IGNORECASE,
)
# First words of statements whose rows the log does not hold when they are in it themselves.
_HIDING: Final = frozenset(
    {
        "INSERT",
        "REPLACE",
        "UPDATE",
        "DELETE",
        "LOAD",
        "WITH",
        "CALL",
        "DO",
        "SELECT",
        "EXECUTE",
        "IMPORT",
        "VALUES",
    }
)
_SYSTEM: Final = frozenset({"mysql", "sys", "information_schema", "performance_schema"})
_TEMPORARY = re.compile(r"CREATE\s+(?:OR\s+REPLACE\s+)?TEMPORARY\b", re.IGNORECASE)
_CREATE_TABLE = re.compile(r"CREATE\s+(?:OR\s+REPLACE\s+)?TABLE\b", re.IGNORECASE)
_SELECT = re.compile(r"\b(?:SELECT|TABLE\s+\S+\s*$)", re.IGNORECASE)


class Query(NamedTuple):
    """One statement that was logged as a statement."""

    schema: str  # the session's own
    text: bytes
    charset: int  # the number of the collation that it is written in; 0 unknown

    def decoded(self) -> str:
        return self.text.decode(errors="backslashreplace")


def parse_query(event: bytes, end: int) -> Query:
    """Read a QUERY event; `end` is where its checksum begins."""
    schema_length = event[27]
    status_length = int.from_bytes(event[30:32], "little")
    at = 32 + status_length
    schema = event[at : at + schema_length].decode(errors="backslashreplace")
    return Query(schema, event[at + schema_length + 1 : end], _charset(event[32:at]))


def emptied_table(query: Query) -> tuple[str, str] | None:
    """Return schema and name of the table that the statement truncates."""
    text = _COMMENT.sub(" ", query.decoded()).strip()
    match = _TRUNCATE.fullmatch(text) or _EMPTIED.fullmatch(text)
    if not match:
        return None
    schema, name = match.groups()
    return (_plain(schema) if schema else query.schema), _plain(name)


def hides_rows(query: Query) -> bool:
    """Tell whether the statement may have changed rows that the log does not hold."""
    text = _COMMENT.sub(" ", query.decoded()).lstrip("( \t\r\n;")
    word = re.match(r"\w*", text)
    first = word.group().upper() if word else ""
    if first in _HIDING:
        target = _TARGET.match(text)
        return not (target and (_plain(target[1]) if target[1] else query.schema).lower() in _SYSTEM)
    if first == "CREATE" and _CREATE_TABLE.match(text) and not _TEMPORARY.match(text):
        return _SELECT.search(_QUOTED.sub("''", text)) is not None
    return False


def _plain(name: str) -> str:
    return name[1:-1].replace("``", "`") if name.startswith("`") else name


def _charset(status: bytes) -> int:
    at = 0
    while at < len(status):
        kind = status[at]
        if kind == _CHARSET:
            return int.from_bytes(status[at + 1 : at + 3], "little")
        if kind in _STATUS_SIZES:
            at += 1 + _STATUS_SIZES[kind]
        elif kind in _COUNTED:
            at += 2 + status[at + 1]
        elif kind == _CATALOG:
            at += 3 + status[at + 1]
        else:
            break
    return 0
