"""Statements in the binlog: their text, and the session that they come from.

The QUERY event has a statement's text as the client sent it, and beside it the session's schema, sql_mode and
the client's character set. `lexer.py` cuts the text into tokens by these, `grammar.py` says what they do to
rows.

Where the event does not say under what a text is to be read:

- `SET STATEMENT sql_mode=… FOR …` (MariaDB): the event has the mode of the execution; the text was read under
  the session's. It is read under each mode, and is UNKNOWN if they do not agree.
- With ROW a server composes the CREATE TABLE of `CREATE TABLE … SELECT` by itself: in UTF-8, whatever the
  event says. So is the TRUNCATE of a MEMORY table that a restart has emptied, on MariaDB. The names of
  savepoints and the session's schema are always in UTF-8.

With lower_case_table_names=1 or 2 the log has tables in lower case, and a statement has them as the client
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
    variables: bytes = b""  # the event's status variables: what is known of the session


class CollationNames(Protocol):
    """Tells what a collation's number means: `listener.mysql.charsets.Charsets`."""

    def name(self, collation: int) -> str:
        """Return the character set's name; raises KeyError."""

    def decoder(self, collation: int) -> Decode:
        """Return what reads its text; raises KeyError, and what asking the server raises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """Which server's statements are read."""

    mariadb: bool
    folds_names: bool = False  # lower_case_table_names is not 0
    charsets: CollationNames | None = None  # None: all text is UTF-8


def is_begin(event: bytes) -> bool:
    """Tell whether a QUERY event is a plain BEGIN, without a look at the rest of it."""
    rest = len(event) - 33 - len(_BEGIN) - _CHECKSUM  # is the schema's name and the status variables
    return event[-9:-4] == _BEGIN and event[27] + event[30] + (event[31] << 8) == rest


def parse_query(event: bytes, end: int) -> Query:
    """Read a QUERY event; `end` is where its checksum begins."""
    at = 32 + int.from_bytes(event[30:32], "little")
    behind_schema = at + event[27]
    return Query(event[at:behind_schema], event[behind_schema + 1 : end], event[32:at])


def savepoint_name(text: bytes) -> bytes:
    """Return what stands behind SAVEPOINT so that equal names are equal: the server compares them in any case."""
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
    """Return the name as a server folds it: letter by letter, never into two."""
    return "".join(low if len(low := letter.lower()) == 1 else low[0] for letter in name)


# The session.

_SQL_MODE, _CHARSET = 1, 4  # status variables
_SIZES: Final = {0: 4, _SQL_MODE: 8, 3: 4, _CHARSET: 6}  # of those two and of what comes before them
_CATALOGS: Final = {2: 2, 6: 1}  # names, with their length before them; how much is around them
# How what a server writes for a MEMORY table ends. Its names are in UTF-8.
_EMPTIED_BY_SERVER: Final = (
    b"/* generated by server, implicitly emptying in-memory table */",
    b"/* generated by server for memory table after a restart */",
)


def _session(variables: bytes) -> tuple[int, int | None]:
    """Return sql_mode and the client's collation; None where the event does not say it."""
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
    if name == BINARY:  # the server takes names as they come, and its own are in UTF-8
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
