"""What a statement does to rows, by its tokens.

A server with binlog_format=ROW logs rows as rows; as statements it logs only definitions, accounts and the like. A
session may choose STATEMENT or MIXED, on MariaDB for one statement (`SET STATEMENT binlog_format=… FOR …`). Then the
rows are missing. So each statement belongs to one of these:

- TRUNCATES: `TRUNCATE [TABLE] name`. On MariaDB `WAIT n` or `NOWAIT` may follow, and `DROP STORAGE` or `REUSE
  STORAGE`. A server writes the same by itself for a MEMORY table that a restart has emptied; an older one
  writes DELETE FROM.
- HIDES: INSERT, REPLACE, UPDATE, DELETE, LOAD, IMPORT, CALL, DO, EXECUTE; SELECT, WITH, VALUES and TABLE,
  which are logged if a function that they call has changed rows. CREATE TABLE with a query: `[AS] SELECT
  …`, `VALUES …`, `TABLE …`, `WITH …`, in brackets or not. With ROW the log has the columns and the rows
  instead of the query. Not: a statement that changes one table of a system database and calls nothing.
  Managed servers log that as a statement.
- MOVES: rows come or go with a definition, and the log has no rows. DROP TABLE, DROP DATABASE, RENAME TABLE,
  CREATE OR REPLACE TABLE; ALTER TABLE with RENAME, DROP PARTITION, TRUNCATE PARTITION, EXCHANGE PARTITION,
  CONVERT PARTITION or TABLE, DISCARD or IMPORT TABLESPACE; ALTER IGNORE TABLE.
- NOTHING: other definitions, and statements about accounts, plugins and maintenance.
- UNKNOWN: everything else, and what cannot be cut into tokens. It may have changed rows.

`SET STATEMENT … FOR` (MariaDB) is skipped. `ANALYZE` (MariaDB) runs the statement behind it, and so does MySQL's
`EXPLAIN ANALYZE`. What a procedure, a block (`BEGIN NOT ATOMIC`) or `EXECUTE IMMEDIATE` does is logged statement by
statement, without them.

Sources: MySQL's manual, "SQL Statements"; MariaDB's, "SQL Statements", there "SET STATEMENT", "ANALYZE
Statement", "TRUNCATE TABLE", "CREATE TABLE", "ALTER TABLE".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import Final, NamedTuple

from listener.mysql.sql.lexer import Kind, Token

__all__ = ["Effect", "Name", "Parser", "Statement"]

Name = tuple[str, str | None]  # schema and table; None: all tables of the schema


class Effect(Enum):
    """What a statement does to rows."""

    NOTHING = 1
    TRUNCATES = 2  # one table
    MOVES = 3  # rows of these tables come or go with a definition
    HIDES = 4  # it changes rows that the log does not hold
    UNKNOWN = 5  # it may have changed rows


class Statement(NamedTuple):
    """What a statement does, and to which tables."""

    effect: Effect
    verb: str = ""  # for messages: INSERT, ALTER TABLE; never a value
    tables: tuple[Name, ...] = ()


_NOTHING: Final = Statement(Effect.NOTHING)
_END: Final = Token(Kind.MARK, b"")
_LONGEST_NAME: Final = 64  # characters


class Parser:
    """Parses one statement from its first token on, as far as needed."""

    def __init__(self, found: Iterator[Token], *, schema: str, name_of: Callable[[Token], str]) -> None:
        """Begin with the first token. `schema` is the session's own; `name_of` decodes a token as a name."""
        self.schema = schema
        self.sets_mode = False  # it sets sql_mode for itself: the server read it under another mode
        self.now = self.last = _END
        self._tokens = found
        self._name_of = name_of
        self.step()

    def statement(self) -> Statement:
        """Return what the statement does; to be called once."""
        while self.take(b"SET"):
            if not self.take(b"STATEMENT"):
                return _NOTHING if self.word in _SETTABLE else Statement(Effect.UNKNOWN, "SET")
            self._skip_to_for()
        return _VERBS.get(self.word, _unknown)(self)

    @property
    def word(self) -> bytes:
        """The current token as a word in upper case; empty if it is not a word."""
        return self.now.word

    @property
    def is_at_end(self) -> bool:
        """Whether all tokens are read."""
        return self.now is _END

    def step(self) -> Token:
        """Go on to the next token; return the one that was current."""
        self.last, self.now = self.now, next(self._tokens, _END)
        return self.last

    def take(self, *words: bytes) -> bool:
        """Go on if the current token is one of these words; return whether it was."""
        found = self.word in words
        if found:
            self.step()
        return found

    def take_each(self, *words: bytes) -> bool:
        """Go on while these words come, in this order; return whether all did."""
        return all(self.take(word) for word in words)

    def take_mark(self, mark: bytes) -> bool:
        """Go on if the current token is this character; return whether it was."""
        found = self.now == (Kind.MARK, mark)
        if found:
            self.step()
        return found

    def ends(self) -> bool:
        """Return whether only semicolons are left."""
        while self.take_mark(b";"):
            pass
        return self.is_at_end

    def identifier(self) -> str | None:
        """Return a name without a point; None if there is none."""
        if self.now.kind not in {Kind.WORD, Kind.NAME}:
            return None
        name = self._name_of(self.step())
        return name if 0 < len(name) <= _LONGEST_NAME else None

    def table(self) -> Name | None:
        """Return the name of a table: `table`, `schema.table` or MariaDB's `.table`; None if there is none."""
        first = self.schema if self.now == (Kind.MARK, b".") else self.identifier()
        second: str | None = None
        is_qualified = self.take_mark(b".")
        if is_qualified:
            second = self.identifier()
        if first is None or (is_qualified and second is None):
            return None
        return (first, second) if is_qualified else (self.schema, first)

    def outermost(self) -> Iterator[Token]:
        """Yield the tokens outside of brackets, each after it was passed."""
        depth = 0
        while not self.is_at_end:
            token = self.step()
            depth += _BRACKETS.get(token.text, 0)
            if depth == 0:
                yield token

    def finds_query(self) -> bool | None:
        """Return whether there is a query outside of brackets, or at the start of brackets; None for a broken token."""
        depth, only_brackets = 0, False  # since the outermost bracket
        while not self.is_at_end:
            token = self.step()
            if token.kind is Kind.BROKEN:
                return None
            is_option = token.word == b"WITH" and self.word == b"SYSTEM" and depth == 0  # VERSIONING
            if token.word in _QUERIES and (depth == 0 or only_brackets) and not is_option:
                return True
            only_brackets = token.text == b"(" and (depth == 0 or only_brackets)
            depth += _BRACKETS.get(token.text, 0)
        return False

    def calls(self) -> bool:
        """Return whether the rest may call a stored function."""
        while not self.is_at_end:
            token = self.step()
            is_name = token.kind is Kind.NAME or (token.word and token.word not in _BUILT_IN)
            if token.kind is Kind.BROKEN or (is_name and self.now.text == b"("):
                return True
        return False

    def _skip_to_for(self) -> None:
        for token in self.outermost():
            self.sets_mode |= b"SQL_MODE" in token.text.upper()
            if token.word == b"FOR":
                return


_BRACKETS: Final = {b"(": 1, b")": -1}
_QUERIES: Final = frozenset({b"SELECT", b"VALUES", b"TABLE", b"WITH"})
_SETTABLE: Final = frozenset({b"PASSWORD", b"DEFAULT", b"ROLE"})
_SYSTEM: Final = frozenset({"mysql", "sys", "information_schema", "performance_schema"})
# Words that may precede a bracket and are not stored functions: the server's own functions take precedence.
_BUILT_IN: Final = frozenset(
    b"""
    AGAINST ALL AND ANY AS BETWEEN BY CASE CHECK COLUMNS CONSTRAINT DISTINCT DIV ELSE ENGINE EXCEPT EXISTS
    FORCE FROM FULLTEXT GROUP HASH HAVING IGNORE IN INDEX INTERSECT INTO IS JOIN KEY LATERAL LESS LIKE LIMIT
    LINEAR LIST MATCH MOD NOT ON OR OVER PARTITION PRIMARY RANGE RECURSIVE REGEXP RLIKE ROW SELECT SET SOME
    SPATIAL THAN THEN UNION UNIQUE UPDATE USE USING VALUE VALUES WHEN WHERE WITH WITHIN XOR
    BINARY BIT BLOB CHAR DATE DATETIME DECIMAL DOUBLE ENUM FLOAT INT INTEGER NCHAR NUMERIC SIGNED TEXT TIME
    TIMESTAMP UNSIGNED VARBINARY VARCHAR
    ABS ACOS ADDDATE ADDTIME ADD_MONTHS AES_DECRYPT AES_ENCRYPT ANY_VALUE ASIN ATAN ATAN2 AVG BENCHMARK BIN
    BINLOG_GTID_POS BIN_TO_UUID BIT_AND BIT_COUNT BIT_LENGTH BIT_OR BIT_XOR CAST CEIL CEILING
    CHARACTER_LENGTH CHAR_LENGTH CHR COALESCE COERCIBILITY COLLATION COLUMN_CHECK COLUMN_EXISTS COLUMN_JSON
    COLUMN_LIST COMPRESS CONCAT CONCAT_WS CONNECTION_ID CONV CONVERT CONVERT_TZ COS COT COUNT CRC32 CRC32C
    CUME_DIST CURDATE CURRENT_DATE CURRENT_ROLE CURRENT_TIME CURRENT_TIMESTAMP CURRENT_USER CURTIME DATABASE
    DATEDIFF DATE_ADD DATE_FORMAT DATE_SUB DAY DAYNAME DAYOFMONTH DAYOFWEEK DAYOFYEAR DECODE
    DECODE_HISTOGRAM DEGREES DENSE_RANK DES_DECRYPT DES_ENCRYPT ELT ENCODE ENCRYPT EXP EXPORT_SET EXTRACT
    EXTRACTVALUE FIELD FIND_IN_SET FIRST_VALUE FLOOR FORMAT FORMAT_BYTES FOUND_ROWS FROM_BASE64 FROM_DAYS
    FROM_UNIXTIME GET_LOCK GREATEST GROUPING GROUP_CONCAT HEX HOUR IF IFNULL INET6_ATON INET6_NTOA INET_ATON
    INET_NTOA INSTR INTERVAL ISNULL IS_FREE_LOCK IS_IPV4 IS_IPV4_COMPAT IS_IPV4_MAPPED IS_IPV6 IS_USED_LOCK
    IS_UUID JSON_ARRAY JSON_ARRAYAGG JSON_ARRAY_APPEND JSON_ARRAY_INSERT JSON_COMPACT JSON_CONTAINS
    JSON_CONTAINS_PATH JSON_DEPTH JSON_DETAILED JSON_EQUALS JSON_EXISTS JSON_EXTRACT JSON_INSERT JSON_KEYS
    JSON_LENGTH JSON_LOOSE JSON_MERGE JSON_MERGE_PATCH JSON_MERGE_PRESERVE JSON_NORMALIZE JSON_OBJECT
    JSON_OBJECTAGG JSON_OVERLAPS JSON_PRETTY JSON_QUERY JSON_QUOTE JSON_REMOVE JSON_REPLACE
    JSON_SCHEMA_VALID JSON_SEARCH JSON_SET JSON_STORAGE_SIZE JSON_TABLE JSON_TYPE JSON_UNQUOTE JSON_VALID
    JSON_VALUE LAG LAST_DAY LAST_INSERT_ID LCASE LEAD LEAST LEFT LENGTH LENGTHB LN LOAD_FILE LOCALTIME
    LOCALTIMESTAMP LOCATE LOG LOG10 LOG2 LOWER LPAD LTRIM MAKEDATE MAKETIME MAKE_SET MASTER_GTID_WAIT
    MASTER_POS_WAIT MAX MD5 MEDIAN MICROSECOND MID MIN MINUTE MONTH MONTHNAME NAME_CONST NATURAL_SORT_KEY
    NOW NTH_VALUE NTILE NULLIF NVL NVL2 OCT OCTET_LENGTH OLD_PASSWORD ORD PASSWORD PERCENTILE_CONT
    PERCENTILE_DISC PERCENT_RANK PERIOD_ADD PERIOD_DIFF PI POSITION POW POWER QUARTER QUOTE RADIANS RAND
    RANDOM_BYTES RANK REGEXP_INSTR REGEXP_LIKE REGEXP_REPLACE REGEXP_SUBSTR RELEASE_ALL_LOCKS RELEASE_LOCK
    REPEAT REPLACE REVERSE RIGHT ROLES_GRAPHML ROUND ROWNUM ROW_COUNT ROW_NUMBER RPAD RTRIM SCHEMA SECOND
    SEC_TO_TIME SESSION_USER SFORMAT SHA SHA1 SHA2 SIGN SIN SLEEP SOUNDEX SPACE SQRT STATEMENT_DIGEST STD
    STDDEV STDDEV_POP STDDEV_SAMP STRCMP STR_TO_DATE SUBDATE SUBSTR SUBSTRING SUBSTRING_INDEX SUBTIME SUM
    SYSDATE SYSTEM_USER SYS_GUID TAN TIMEDIFF TIMESTAMPADD TIMESTAMPDIFF TIME_FORMAT TIME_TO_SEC TO_BASE64
    TO_CHAR TO_DAYS TO_SECONDS TRIM TRUNCATE UCASE UNCOMPRESS UNCOMPRESSED_LENGTH UNHEX UNIX_TIMESTAMP
    UPDATEXML UPPER USER UTC_DATE UTC_TIME UTC_TIMESTAMP UUID UUID_SHORT UUID_TO_BIN VARIANCE VAR_POP
    VAR_SAMP VERSION WEEK WEEKDAY WEEKOFYEAR WEIGHT_STRING YEAR YEARWEEK
    """.split()
)


def _nothing(_parser: Parser) -> Statement:
    return _NOTHING


def _unknown(parser: Parser) -> Statement:
    if parser.is_at_end:
        return _NOTHING  # only a comment
    return Statement(Effect.UNKNOWN, parser.word.decode(errors="replace")[:20])


def _hides(parser: Parser) -> Statement:
    return Statement(Effect.HIDES, parser.word.decode())


def _truncate(parser: Parser) -> Statement:
    parser.step()
    parser.take(b"TABLE")
    table = parser.table()
    if not parser.take(b"NOWAIT") and parser.take(b"WAIT"):
        parser.step()
    if parser.take(b"DROP", b"REUSE"):
        parser.take(b"STORAGE")
    if table is None or not parser.ends():
        return Statement(Effect.UNKNOWN, "TRUNCATE")
    return Statement(Effect.TRUNCATES, "TRUNCATE", (table,))


def _change_rows(parser: Parser) -> Statement:
    verb = parser.step().word
    hides = Statement(Effect.HIDES, verb.decode())
    while parser.take(*_MODIFIERS):
        pass
    is_quoted = parser.now.text.startswith(b"`")
    table = parser.table()
    if table is None:
        return hides
    if verb == b"DELETE" and is_quoted and parser.last.text.startswith(b"`") and parser.is_at_end:
        return Statement(Effect.TRUNCATES, "DELETE", (table,))
    if table[0].lower() in _SYSTEM and _has_one_table(parser, verb) and not parser.calls():
        return _NOTHING
    return hides


def _has_one_table(parser: Parser, verb: bytes) -> bool:
    if verb == b"UPDATE":
        return parser.word == b"SET"
    if verb == b"DELETE":
        return parser.is_at_end or parser.word in {b"WHERE", b"ORDER", b"LIMIT"}
    return True


_MODIFIERS: Final = (b"LOW_PRIORITY", b"DELAYED", b"HIGH_PRIORITY", b"QUICK", b"IGNORE", b"INTO", b"FROM")


def _analyze(parser: Parser) -> Statement:
    parser.step()
    is_maintenance = parser.word in {b"TABLE", b"TABLES", b"LOCAL", b"NO_WRITE_TO_BINLOG"}
    return _NOTHING if is_maintenance else Statement(Effect.HIDES, "ANALYZE")


def _create(parser: Parser) -> Statement:
    parser.step()
    replaces = parser.take_each(b"OR", b"REPLACE")
    is_temporary = parser.take(b"TEMPORARY")
    if parser.take(b"TABLE"):
        return _create_table(parser, replaces=replaces, is_temporary=is_temporary)
    return _NOTHING if is_temporary or parser.word in _CREATED else Statement(Effect.UNKNOWN, "CREATE")


# What may follow CREATE, apart from tables: none of these has rows that belong into a log.
_CREATED: Final = frozenset(
    b"""
    AGGREGATE ALGORITHM CATALOG DATABASE DEFINER EVENT FULLTEXT FUNCTION INDEX JSON LIBRARY LOGFILE OFFLINE
    ONLINE PACKAGE PROCEDURE RESOURCE ROLE SCHEMA SEQUENCE SERVER SPATIAL SQL TABLESPACE TRIGGER UNDO UNIQUE
    USER VECTOR VIEW
    """.split()
)


def _create_table(parser: Parser, *, replaces: bool, is_temporary: bool) -> Statement:
    parser.take_each(b"IF", b"NOT", b"EXISTS")
    table = parser.table()
    has_query = None if table is None else parser.finds_query()
    if table is None or has_query is None:
        return Statement(Effect.UNKNOWN, "CREATE TABLE")
    if is_temporary:
        return Statement(Effect.UNKNOWN, "CREATE TEMPORARY TABLE") if parser.calls() else _NOTHING
    if has_query:
        return Statement(Effect.HIDES, "CREATE TABLE")
    return Statement(Effect.MOVES, "CREATE OR REPLACE TABLE", (table,)) if replaces else _NOTHING


def _drop(parser: Parser) -> Statement:
    parser.step()
    if parser.take(b"TABLE", b"TABLES"):
        parser.take_each(b"IF", b"EXISTS")
        return Statement(Effect.MOVES, "DROP TABLE", tuple(_tables(parser)))
    if parser.take(b"DATABASE", b"SCHEMA"):
        parser.take_each(b"IF", b"EXISTS")
        schema = parser.identifier()
        return Statement(Effect.MOVES, "DROP DATABASE", ((schema, None),)) if schema else _NOTHING
    return _NOTHING


def _rename(parser: Parser) -> Statement:
    parser.step()
    if not parser.take(b"TABLE", b"TABLES"):
        return _NOTHING
    parser.take_each(b"IF", b"EXISTS")
    return Statement(Effect.MOVES, "RENAME TABLE", tuple(_tables(parser)))


def _tables(parser: Parser) -> Iterator[Name]:
    """Yield the tables of a list, or of pairs with TO between them."""
    while table := parser.table():
        yield table
        if not parser.take(b"NOWAIT") and parser.take(b"WAIT"):
            parser.step()
        if not (parser.take(b"TO") or parser.take_mark(b",")):
            return


def _alter(parser: Parser) -> Statement:
    parser.step()
    parser.take(b"ONLINE", b"OFFLINE")
    ignores = parser.take(b"IGNORE")  # it deletes rows that a new key does not allow
    if not parser.take(b"TABLE"):
        return _NOTHING
    parser.take_each(b"IF", b"EXISTS")
    table = parser.table()
    if table is None:
        return _NOTHING
    tables = [table]
    verb = "ALTER IGNORE TABLE" if ignores else ""
    if not parser.take(b"NOWAIT") and parser.take(b"WAIT"):
        parser.step()
    while not parser.is_at_end:
        verb = _clause(parser, tables) or verb
        any(token.text == b"," for token in parser.outermost())  # up to the next clause
    return Statement(Effect.MOVES, verb, tuple(tables)) if verb else _NOTHING


def _clause(parser: Parser, tables: list[Name]) -> str:
    """Return the SQL of a clause of ALTER TABLE that moves rows, else ""; add the other table to `tables`."""
    verb = parser.word
    if verb not in _MOVING or not parser.step():
        return ""
    if verb == b"RENAME":
        return "" if parser.word in {b"COLUMN", b"INDEX", b"KEY"} else _renamed(parser, tables)
    if verb in {b"DISCARD", b"IMPORT"}:
        return f"ALTER TABLE … {verb.decode()} TABLESPACE"
    what = parser.word
    if what != b"PARTITION" and (verb, what) != (b"CONVERT", b"TABLE"):
        return ""
    if verb in {b"EXCHANGE", b"CONVERT"}:
        _other_table(parser, tables)
    return f"ALTER TABLE … {verb.decode()} {what.decode()}"


_MOVING: Final = frozenset({b"RENAME", b"DISCARD", b"IMPORT", b"DROP", b"TRUNCATE", b"EXCHANGE", b"CONVERT"})


def _renamed(parser: Parser, tables: list[Name]) -> str:
    if not parser.take(b"TO", b"AS"):
        parser.take_mark(b"=")
    if table := parser.table():
        tables.append(table)
    return "ALTER TABLE … RENAME"


def _other_table(parser: Parser, tables: list[Name]) -> None:
    """Add the table whose rows are exchanged with the partition's."""
    while not parser.is_at_end and parser.now.text != b",":
        if parser.take(b"TABLE"):
            if table := parser.table():
                tables.append(table)
            return
        parser.step()


_VERBS: Final[dict[bytes, Callable[[Parser], Statement]]] = {
    b"TRUNCATE": _truncate,
    b"ANALYZE": _analyze,
    b"CREATE": _create,
    b"ALTER": _alter,
    b"DROP": _drop,
    b"RENAME": _rename,
    **dict.fromkeys((b"INSERT", b"REPLACE", b"UPDATE", b"DELETE"), _change_rows),
    **dict.fromkeys(b"LOAD IMPORT CALL DO EXECUTE SELECT WITH VALUES TABLE".split(), _hides),
    **dict.fromkeys(b"GRANT REVOKE FLUSH OPTIMIZE REPAIR CHECK INSTALL UNINSTALL".split(), _nothing),
}
