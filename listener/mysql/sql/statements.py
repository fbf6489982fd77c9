"""Statements in the binlog: their text, and the session that ran them.

The QUERY event has a statement's text as the client sent it, with the session's schema, its sql_mode and the client's
character set. With these, `lexer.py` cuts the text into tokens, and `grammar.py` determines its effect on rows.

In some cases the event does not show how to read a text:

- `SET STATEMENT sql_mode=… FOR …` (MariaDB): the event has the mode of the execution, but the server read the text
  under the session's mode. Here it is read under each mode, and is UNKNOWN if the results differ.
- With ROW a server writes the CREATE TABLE of `CREATE TABLE … SELECT` by itself: in UTF-8, whatever the event says. On
  MariaDB it also writes the TRUNCATE of a MEMORY table that a restart has emptied in UTF-8. The names of savepoints and
  the session's schema are always in UTF-8.

With lower_case_table_names=1 or 2 the log has the names of tables in lower case, and a statement has them as the client
wrote them.

Sources: MySQL's source documentation, "mysql::binlog::event::Query_event"; MariaDB's "QUERY_EVENT"; MySQL's
manual, "Identifier Case Sensitivity".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, NamedTuple, Protocol

from listener.mysql.charsets import BINARY, Decode
from listener.mysql.sql.grammar import Effect, Parser, Statement
from listener.mysql.sql.lexer import ANSI_QUOTES, MSSQL, NO_BACKSLASH_ESCAPES, Rules, Token, tokens, unquoted

__all__ = [
    "BACK_TO",
    "SAVEPOINT",
    "CollationNames",
    "Dialect",
    "Effect",
    "Query",
    "Statement",
    "is_begin",
    "parse_query",
    "read_statement",
    "savepoint_name",
]

SAVEPOINT, BACK_TO = b"SAVEPOINT ", b"ROLLBACK TO "

_BEGIN: Final = b"BEGIN"
_CHECKSUM: Final = 4


class Query(NamedTuple):
    """One statement that was logged as a statement."""

    schema: bytes  # the session's own, in UTF-8
    text: bytes
    variables: bytes = b""  # the event's status variables, with the session's settings


class CollationNames(Protocol):
    """What a collation's number means: `listener.mysql.charsets.Charsets`."""

    def name(self, collation: int) -> str:
        """Return the character set's name; raises KeyError."""

    def decoder(self, collation: int) -> Decode:
        """Return what decodes its text; raises KeyError, SourceError, SourceLostError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How a server's statements are read."""

    mariadb: bool
    folds_names: bool = False  # lower_case_table_names is not 0
    charsets: CollationNames | None = None  # None: all text is UTF-8


def is_begin(event: bytes) -> bool:
    """Return whether a QUERY event is a plain BEGIN, without reading the rest of it."""
    rest = len(event) - 33 - len(_BEGIN) - _CHECKSUM  # is the schema's name and the status variables
    return event[-9:-4] == _BEGIN and event[27] + event[30] + (event[31] << 8) == rest


def parse_query(event: bytes, end: int) -> Query:
    """Return what a QUERY event has; `end` is where its checksum begins."""
    at = 32 + int.from_bytes(event[30:32], "little")
    behind_schema = at + event[27]
    return Query(event[at:behind_schema], event[behind_schema + 1 : end], event[32:at])


def savepoint_name(text: bytes) -> bytes:
    """Return a savepoint's name in upper case: the server ignores the case when it compares them."""
    return text.decode(errors="surrogateescape").upper().encode(errors="surrogateescape")


def read_statement(query: Query, dialect: Dialect) -> Statement:
    """Return what the statement does to rows; raises what `dialect.charsets` raises, never for ASCII."""
    sql_mode, collation = _session(query.variables)
    charset, decode = _charset(query.text, collation, dialect.charsets)
    rules = Rules(mariadb=dialect.mariadb, sql_mode=sql_mode, charset=charset)
    found = _read(query, dialect, rules, decode)
    if found.effect in _ALARMING and rules.is_wide and _is_utf8(query.text):
        composed = _read(query, dialect, replace(rules, charset=_UTF8), _decode_utf8)
        return composed if composed.effect is Effect.NOTHING else found
    return found


_ALARMING: Final = frozenset({Effect.HIDES, Effect.UNKNOWN})
_UTF8: Final = "utf8mb4"
_QUOTES: Final = (0, ANSI_QUOTES, MSSQL, ANSI_QUOTES | MSSQL)
_MODES: Final = (*_QUOTES, *(mode | NO_BACKSLASH_ESCAPES for mode in _QUOTES))


def _read(query: Query, dialect: Dialect, rules: Rules, decode: Decode) -> Statement:
    parser = _parser(query, dialect, rules, decode)
    found = parser.statement()
    if not parser.sets_mode:
        return found
    modes = (replace(rules, sql_mode=mode) for mode in _MODES)
    readings = {_parser(query, dialect, each, decode).statement() for each in modes}
    known = [each for each in readings if each.effect is not Effect.UNKNOWN]
    return known[0] if len(known) == 1 else Statement(Effect.UNKNOWN, found.verb)


def _parser(query: Query, dialect: Dialect, rules: Rules, decode: Decode) -> Parser:
    def name_of(token: Token) -> str:
        return fold(decode(unquoted(token.text, rules)))

    fold = _lower if dialect.folds_names else str
    schema = fold(_decode_utf8(query.schema))
    return Parser(tokens(query.text, rules), schema=schema, name_of=name_of)


def _lower(name: str) -> str:
    """Return the name in lower case, as a server folds it: letter by letter, never one into two."""
    return "".join(low if len(low := letter.lower()) == 1 else low[0] for letter in name)


# The session.

_SQL_MODE, _CHARSET = 1, 4  # status variables
_SIZES: Final = {0: 4, _SQL_MODE: 8, 3: 4, _CHARSET: 6}  # in bytes, of these two and of those before them
_CATALOGS: Final = {2: 2, 6: 1}  # names after their length; how many bytes there are beside the name
# The end of what a server writes for a MEMORY table. Its names are in UTF-8.
_EMPTIED_BY_SERVER: Final = (
    b"/* generated by server, implicitly emptying in-memory table */",
    b"/* generated by server for memory table after a restart */",
)


def _session(variables: bytes) -> tuple[int, int | None]:
    """Return sql_mode and the client's collation; None if the event does not have it."""
    found: dict[int, int] = {}
    at = 0
    while at + 1 < len(variables) and _CHARSET not in found:
        code, at = variables[at], at + 1
        if code in _CATALOGS:
            at += variables[at] + _CATALOGS[code]
        elif code in _SIZES:
            size = 2 if code == _CHARSET else _SIZES[code]  # its first two bytes are the client's
            found[code] = int.from_bytes(variables[at : at + size], "little")
            at += _SIZES[code]
        else:
            break
    return found.get(_SQL_MODE, 0), found.get(_CHARSET)


def _charset(text: bytes, collation: int | None, charsets: CollationNames | None) -> tuple[str, Decode]:
    if text.isascii() or text.endswith(_EMPTIED_BY_SERVER) or collation is None or charsets is None:
        return _UTF8, _decode_utf8
    name = charsets.name(collation)
    if name == BINARY:  # the server takes names as bytes, and its own are in UTF-8
        return _UTF8, _decode_utf8
    return name, charsets.decoder(collation)


def _decode_utf8(text: bytes) -> str:
    return text.decode(errors="backslashreplace")


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
