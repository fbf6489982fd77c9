"""Statements in the binlog: which of them end a transaction, empty a table, or have rows that were not logged."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

__all__ = ["BACK_TO", "SAVEPOINT", "Query", "emptied_table", "hides_rows", "is_begin", "parse_query"]

SAVEPOINT, BACK_TO = b"SAVEPOINT ", b"ROLLBACK TO "

_BEGIN: Final = b"BEGIN"
_CHECKSUM: Final = 4

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

    def decoded(self) -> str:
        return self.text.decode(errors="backslashreplace")


def is_begin(event: bytes) -> bool:
    """Tell whether a QUERY event is a plain BEGIN, without a look at the rest of it."""
    rest = len(event) - 33 - len(_BEGIN) - _CHECKSUM  # is the schema's name and the status variables
    return event[-9:-4] == _BEGIN and event[27] + event[30] + (event[31] << 8) == rest


def parse_query(event: bytes, end: int) -> Query:
    """Read a QUERY event; `end` is where its checksum begins."""
    schema_length = event[27]
    at = 32 + int.from_bytes(event[30:32], "little")
    schema = event[at : at + schema_length].decode(errors="backslashreplace")
    return Query(schema, event[at + schema_length + 1 : end])


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
