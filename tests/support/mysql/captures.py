"""Binlogs of real servers, kept for tests without a server.

`python -m tests.support.mysql.captures` records them again.

Each scenario is a list of statements, run on MariaDB and on MySQL, or on one of them. A capture has the events, and the
codec's queries to the server: the names of collations, and data about tables that MariaDB's log lacks.
"""

from __future__ import annotations

import base64
import json
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from harness.given_mysql import MariaDBServer, MySQLServer
from listener.mysql.charsets import Charsets
from listener.mysql.client.connection import Session, connect, execute, fetch
from listener.mysql.client.replication import events_as_tool
from listener.mysql.client.server import current_position, read_server
from listener.mysql.codec.compressed_events import NO_CHECKSUM
from listener.mysql.codec.decoder import Decoder
from listener.mysql.log.position import BinlogPosition
from listener.mysql.tables.catalogue import Definitions
from listener.mysql.tables.table_description import Tables
from listener.router import BinlogRouter, EventType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from listener.mysql.client.connection import Connection
    from listener.mysql.codec.change import BinlogChange

__all__ = ["SCENARIOS", "BinlogCapture", "binlog_captures", "read_all"]

_DIRECTORY: Final = Path(__file__).parents[2] / "unit" / "captured"
_SCHEMA: Final = "captured"
_INTACT: Final = 0x2144DF1C  # the CRC-32 of any data that ends with its own CRC-32

_COLLATIONS: Final = {8, 45, 46, 63, 255}  # of latin1, utf8mb4 and binary: those of the scenarios

_BOTH: Final = ("mariadb", "mysql")
_JSON: Final = '{"a": [1, -2, 2.5, true, null, {"ü": "x"}], "pad": "' + "x" * 300 + '", "n": 1}'

SCENARIOS: Final[dict[str, tuple[Sequence[str], list[str]]]] = {
    "rows": (
        _BOTH,
        [
            "CREATE TABLE people (id int PRIMARY KEY, name varchar(50), age int)",
            "INSERT INTO people VALUES (1, 'Ada', NULL), (2, NULL, 36)",
            "UPDATE people SET age = 37 WHERE id = 2",
            "UPDATE people SET id = 3 WHERE id = 2",
            "DELETE FROM people WHERE id = 1",
            "BEGIN",
            "INSERT INTO people VALUES (8, 'kept', 1)",
            "SAVEPOINT s",
            "INSERT INTO people VALUES (9, 'never', 1)",
            "ROLLBACK TO s",
            "COMMIT",
            "BEGIN",
            "INSERT INTO people VALUES (10, 'never', 1)",
            "ROLLBACK",
        ],
    ),
    "types": (
        _BOTH,
        [
            "SET sql_mode = 'ALLOW_INVALID_DATES'",
            (
                "CREATE TABLE numbers (a tinyint, b tinyint unsigned, c smallint, d mediumint,"
                " e mediumint unsigned, f int, g bigint unsigned, h float, i double, j decimal(20,11),"
                " k decimal(5,0), l year, m bit(11))"
            ),
            (
                "INSERT INTO numbers VALUES (-128, 255, -32768, -8388608, 16777215, -2147483648, 18446744073709551615,"
                " 0.1, 1e300, -123456789.12345678901, 0, 2026, b'101')"
            ),
            (
                "CREATE TABLE times (a date, b datetime, c datetime(3), d datetime(6), e timestamp NULL,"
                " f timestamp(2) NULL, g time, h time(6))"
            ),
            (
                "INSERT INTO times VALUES ('2026-11-22', '2026-11-22 10:00:00', '2026-11-22 10:00:00.5', '2026-02-31',"
                " '2026-11-22 10:00:00', '1970-01-01 00:00:01.25', '-838:59:59', '-00:00:00.000001')"
            ),
            (
                "CREATE TABLE texts (a char(10) CHARACTER SET latin1, b varchar(300) CHARACTER SET utf8mb4,"
                " c text CHARACTER SET utf8mb4, d enum('x','y'), e set('a','b','c'), f binary(4),"
                " g varbinary(9), h blob)"
            ),
            "INSERT INTO texts VALUES ('é', 'Grüße', REPEAT('x', 300), 'y', 'a,c', 'a', x'00ff', '')",
            "INSERT INTO texts VALUES (NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
        ],
    ),
    "images": (
        _BOTH,
        [
            "CREATE TABLE t (a int NOT NULL DEFAULT 3 PRIMARY KEY, b text, c int)",
            "SET binlog_row_image = MINIMAL",
            "INSERT INTO t () VALUES ()",
            "UPDATE t SET b = 'x'",
            "DELETE FROM t",
            "SET binlog_row_image = NOBLOB",
            "INSERT INTO t VALUES (1, 'x', 1)",
            "UPDATE t SET c = 2",
        ],
    ),
    "definitions": (
        _BOTH,
        [
            "CREATE TABLE t (id int PRIMARY KEY, a int)",
            "INSERT INTO t VALUES (1, 1)",
            "ALTER TABLE t ADD COLUMN b varchar(10) FIRST",
            "INSERT INTO t VALUES ('b', 2, 2)",
            "ALTER TABLE t CHANGE a c varchar(20), DROP COLUMN b",
            "INSERT INTO t VALUES (3, 'three')",
            "TRUNCATE TABLE t",
            "CREATE TABLE made (one int) SELECT 1 AS one UNION SELECT 2",
        ],
    ),
    "xa": (
        _BOTH,
        [
            "CREATE TABLE t (id int PRIMARY KEY)",
            *("XA START 'one'", "INSERT INTO t VALUES (1)", "XA END 'one'", "XA PREPARE 'one'"),
            "XA COMMIT 'one'",
            *("XA START 'two'", "INSERT INTO t VALUES (2)", "XA END 'two'", "XA PREPARE 'two'"),
            "XA ROLLBACK 'two'",
            *(
                "XA START 'three'",
                "INSERT INTO t VALUES (3)",
                "XA END 'three'",
                "XA COMMIT 'three' ONE PHASE",
            ),
        ],
    ),
    "compressed": (
        _BOTH,
        [
            "SET GLOBAL log_bin_compress = ON",
            "SET binlog_transaction_compression = ON",
            "CREATE TABLE t (id int PRIMARY KEY, a text)",
            "INSERT INTO t VALUES (1, REPEAT('x', 1000)), (2, REPEAT('y', 1000))",
            "UPDATE t SET a = REPEAT('z', 1000)",
            "DELETE FROM t",
            "SET GLOBAL log_bin_compress = OFF",
        ],
    ),
    "documents": (
        ["mysql"],
        [
            "CREATE TABLE t (id int PRIMARY KEY, a json)",
            f"INSERT INTO t VALUES (1, '{_JSON}')",
            "SET binlog_row_value_options = PARTIAL_JSON",
            "UPDATE t SET a = JSON_SET(a, '$.n', JSON_OBJECT('deep', JSON_ARRAY(1, 2)), '$.added', 7)",
            "UPDATE t SET a = JSON_REMOVE(a, '$.a[0]')",
            "UPDATE t SET a = JSON_ARRAY_INSERT(a, '$.a[0]', 'first')",
            (
                "INSERT INTO t VALUES (2, JSON_ARRAY(12.50, CAST('2026-11-22 10:00:00.5' AS DATETIME(1)),"
                " CAST('2026-11-22' AS DATE), CAST('-10:00:00' AS TIME), REPEAT(x'00ff', 40)))"
            ),
        ],
    ),
    "catalogue": (
        ["mariadb"],
        [
            "CREATE TABLE t (a uuid, b inet6, c inet4, d json, e binary(16))",
            "INSERT INTO t VALUES ('123e4567-e89b-12d3-a456-426655440000', '2001:db8::ff', '192.0.2.1', '[1]', 'x')",
            "CREATE TABLE u (id int PRIMARY KEY, a text, UNIQUE (a)) WITH SYSTEM VERSIONING",
            "INSERT INTO u VALUES (1, 'a')",
            "UPDATE u SET a = 'b'",
            "DELETE FROM u",
            "DELETE HISTORY FROM u",
            "CREATE SEQUENCE s",
            "SELECT NEXTVAL(s)",
            "SET GLOBAL mysql56_temporal_format = OFF",
            "CREATE TABLE v (a datetime(3), b timestamp(3) NULL, c time(6), d datetime, e varchar(9) COMPRESSED)",
            "SET GLOBAL mysql56_temporal_format = ON",
            (
                "INSERT INTO v VALUES ('2026-11-22 10:00:00.5', '2026-11-22 10:00:00.25', '-10:00:00.000001',"
                " '2026-11-22 10:00:00', 'end')"
            ),
        ],
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BinlogCapture:
    """The log of one server, and its answers while the log was read."""

    scenario: str
    server: str  # mariadb or mysql
    version: str
    events: list[str]  # base64
    asked: list[str]  # JSON of query, arguments and rows

    def __str__(self) -> str:
        return self.server

    def raw(self) -> list[bytes]:
        return [base64.b64decode(event) for event in self.events]

    def decoder(self) -> Decoder:
        """Return a decoder that reads the events as those of one connection."""
        return _decoder(_Recorded(self.asked), mariadb=self.server == "mariadb")

    def changes(self) -> list[BinlogChange]:
        return read_all(self.decoder(), self.raw())


def binlog_captures(scenario: str = "*") -> list[BinlogCapture]:
    """Return the captures of a scenario, or of all scenarios, one for each server."""
    paths = sorted(_DIRECTORY.glob(f"binlog-{scenario}-*.json"))
    return [BinlogCapture(**json.loads(path.read_text())) for path in paths]


def read_all(decoder: Decoder, events: Iterable[bytes], *, to_the_end: bool = False) -> list[BinlogChange]:
    """Return the changes in these events, including nested events.

    `to_the_end`: buffer the rest of a transaction until its outcome is certain, as at the end of each batch.
    """
    changes: list[BinlogChange] = []
    outer = iter(events)
    while True:
        event = next(decoder.inner or outer, None)
        if event is not None:
            decoder.decode(event, changes)
            if to_the_end and changes and decoder.needs_end:
                any(decoder.buffer(later, changes) for later in outer)
        elif decoder.inner is not None:
            decoder.leave_inner()
        else:
            return changes


class _Recorded(Session):
    """Answers only from a capture, instead of from a server."""

    def __init__(self, asked: Iterable[str]) -> None:
        super().__init__(_no_server)
        self._answers = {_key(query, arguments): rows for query, arguments, rows in map(json.loads, asked)}

    def fetch(self, query: str, arguments: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self._answers.get(_key(query, arguments), ())]


class _Recording(Session):
    """Records the queries in `asked`."""

    def __init__(self, url: str) -> None:
        super().__init__(lambda: connect(url))
        self.asked: list[str] = []

    def fetch(self, query: str, arguments: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
        rows = super().fetch(query, arguments)
        kept = [row for row in rows if "COLLATION" not in query or row[0] in _COLLATIONS]
        self.asked.append(json.dumps([query, arguments, kept], ensure_ascii=False))
        return kept


def _key(query: str, arguments: Sequence[Any] | None) -> tuple[str, ...]:
    return query, *map(str, arguments or ())


def _no_server() -> Connection[Any]:
    raise AssertionError("a capture needs no server")


def _decoder(session: Session, *, mariadb: bool) -> Decoder:
    router = BinlogRouter()
    router.register(_SCHEMA, "*", EventType.ALL, "a.task")
    tables = Tables(
        Definitions(session) if mariadb else None, Charsets(session), router.routes, mariadb=mariadb
    )
    return Decoder(
        mariadb=mariadb,
        describe=tables.describe,
        forget=tables.forget,
        after=BinlogPosition(file="binlog.000001", offset=4, server="1"),
    )


def read_log(url: str, position: BinlogPosition) -> list[bytes]:
    """Return the events from there to the end of the log, each with a checksum, without being a replica."""
    with closing(connect(url)) as connection:
        return [
            event if crc32(event) == _INTACT else event + NO_CHECKSUM
            for event in events_as_tool(connection, position.file, position.offset)
        ]


def _record(server: MariaDBServer | MySQLServer, scenario: str) -> BinlogCapture:
    _, statements = SCENARIOS[scenario]
    with closing(connect(server.url)) as connection:
        about = read_server(connection)
        execute(connection, f"DROP DATABASE IF EXISTS {_SCHEMA}")
        execute(connection, f"CREATE DATABASE {_SCHEMA} CHARACTER SET utf8mb4")
        execute(connection, f"USE {_SCHEMA}")
        start = current_position(connection, about)
        for statement in statements:
            if not _is_of_other_server(statement, about.kind):
                fetch(connection, statement)
    events = read_log(server.url, start)
    session = _Recording(server.url)
    read_all(_decoder(session, mariadb=about.is_mariadb), events)
    return BinlogCapture(
        scenario=scenario,
        server=about.kind,
        version=about.version_text,
        events=[base64.b64encode(event).decode() for event in events],
        asked=session.asked,
    )


def _is_of_other_server(statement: str, kind: str) -> bool:
    other: Mapping[str, str] = {"mysql": "log_bin_compress", "mariadb": "binlog_transaction_compression"}
    return other[kind] in statement


def main() -> None:
    """Record every scenario on each of its servers."""
    servers: dict[str, Callable[[], MariaDBServer | MySQLServer]] = {
        "mariadb": MariaDBServer,
        "mysql": MySQLServer,
    }
    for kind, start in servers.items():
        with start() as server:
            for scenario, (kinds, _) in SCENARIOS.items():
                if kind in kinds:
                    capture = _record(server, scenario)
                    path = _DIRECTORY / f"binlog-{scenario}-{capture}.json"
                    path.write_text(json.dumps(asdict(capture), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
