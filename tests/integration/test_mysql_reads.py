"""A row that a backfill reads from MySQL or MariaDB looks as the stream has it, and comes in its place."""

from __future__ import annotations

import json
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.waiting import Deadline, at_most, wait_until
from listener.core.backfill import Chunk, ChunkRequest
from listener.mysql.backfill.chunk_reader import ChunkReader, ReadWork
from listener.mysql.check import check_mysql
from listener.mysql.client.connection import connect
from listener.mysql.client.server import read_server
from listener.router import BinlogRouter, EventType
from reference.values import MYSQL_NUMBERS, MYSQL_TEXTS, MYSQL_TIMES
from tests.integration.test_mysql_types import DOCUMENTS
from tests.support.mysql.source import MySQLDatabase, MySQLSource
from tests.support.publishing import in_background

if TYPE_CHECKING:
    from collections.abc import Callable

    from cdc_tasks.changes import Change

_MORE = [
    ("varchar(20) CHARACTER SET latin1", "'é'"),
    ("char(9) CHARACTER SET utf16", "'é'"),
    ("text CHARACTER SET sjis", "'日'"),
    ("enum('a','b') CHARACTER SET latin1", "'b'"),
    ("int(5) zerofill", "7"),
    ("decimal(8,2) zerofill", "1.5"),
    ("float", "-0.0"),
    ("float", "123456.789"),
    ("double(10,2)", "0.1"),
    ("geometry", "POINT(1, 2)"),
    *(("json", "'" + text.replace("\\", "\\\\") + "'") for text in DOCUMENTS),
]
_OF_MARIADB = [
    ("uuid", "'123e4567-e89b-12d3-a456-426655440000'"),
    ("inet6", "'::ffff:192.0.2.1'"),
    ("inet4", "'192.0.2.1'"),
    ("text COMPRESSED", "'abc'"),
    ("longtext", "'[1]'"),
]


def _read(
    source: MySQLSource, table: str = "t", *, before: list[Change] | None = None, **options: Any
) -> Chunk:
    """Return the next chunk of the table, once the stream has come to its place, with what came `before` it."""
    monitor: Any = source._monitor
    options = {"backfill": "a1b2", "schema": source.database.name, "limit": 100} | options
    monitor.read_chunk(ChunkRequest(table=table, **options))
    deadline = Deadline(60)
    for batch in source._batches:
        source.position = batch.position
        if before is not None:
            before.extend(batch.changes)
        if batch.chunk is not None:
            return batch.chunk
        deadline.check("the chunk")
    raise AssertionError("the batches ended")


def _disturb(source: MySQLSource, disturb: Callable[[], None]) -> None:
    """Let something happen once, between the snapshot of the next chunk and its rows."""
    reader: Any = source._monitor._window._reader  # type: ignore[union-attr]
    table = reader._table

    def disturbed(*arguments: Any) -> Any:
        reader._table = table
        disturb()
        return table(*arguments)

    reader._table = disturbed


def _row(change: Change) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(change.to_json())["after"]
    assert row == change.after
    return row


def test_a_read_has_the_values_of_the_insert_whatever_the_types(source: MySQLSource) -> None:
    cases = [case[:2] for case in MYSQL_NUMBERS + MYSQL_TIMES + MYSQL_TEXTS] + _MORE
    cases += _OF_MARIADB if source.database.is_mariadb else []
    columns = ", ".join(f"c{n} {kind}" for n, (kind, _) in enumerate(cases))
    source.execute(
        f"CREATE TABLE t (id int PRIMARY KEY, {columns}, s int AS (id + 1) STORED, w int AS (id + 2) VIRTUAL,"
        " i int INVISIBLE DEFAULT 7) CHARACTER SET utf8mb4",
        setting="sql_mode = ''",
    )
    source.watch()
    names = ", ".join(f"c{n}" for n in range(len(cases)))
    source.execute(
        f"INSERT INTO t (id, {names}) VALUES (1, {', '.join(value for _, value in cases)})",
        "INSERT INTO t (id) VALUES (2)",
        setting="sql_mode = 'ALLOW_INVALID_DATES'",
    )
    inserts = source.changes(2)
    chunk = _read(source)
    assert chunk.error is None, chunk.error
    assert [_row(each) for each in chunk.rows] == [_row(each) for each in inserts]
    assert list(_row(chunk.rows[0])) == list(_row(inserts[0]))
    assert json.loads(chunk.rows[0].to_json(("c1", "id")))["after"] == {"c1": inserts[0].row["c1"], "id": 1}


# Rows that lie close together in the order of their keys, also where a literal would compare otherwise.
_KEYS = [
    (
        "a varchar(20) COLLATE utf8mb4_general_ci NOT NULL, b int NOT NULL",
        "a, b",
        "('a', 1), ('A', 2), ('á', 3), ('b', 1), ('', 9)",
    ),
    ("a varchar(9) CHARACTER SET latin1 NOT NULL", "a", "('é'), (X'275c'), ('f'), ('z')"),
    (
        "a enum('z', 'b', 'a') NOT NULL, b set('x', 'y') NOT NULL",
        "a, b",
        "('z', 'x'), ('b', ''), ('b', 'x,y'), ('a', 'x')",
    ),
    ("a float NOT NULL", "a", "(0.1), (0.2), (0.3), (-1e20), (1e20)"),
    ("a double NOT NULL", "a", "(0.1), (0.30000000000000004), (0.3), (1e300)"),
    ("a decimal(20, 10) NOT NULL", "a", "(0.1), (0.1000000001), (-3), (1e9)"),
    ("a bigint unsigned NOT NULL", "a", "(0), (9223372036854775808), (18446744073709551615)"),
    ("a binary(3) NOT NULL", "a", "('a'), (x'00'), (x'0001'), (x'ff')"),
    (
        "a datetime(6) NOT NULL, b date NOT NULL",
        "b, a",
        "(NOW(6), '2026-01-01'), ('2026-01-01 00:00:00.000001', '2026-01-01')",
    ),
    (
        "a timestamp(3) NOT NULL, b time(2) NOT NULL",
        "a, b",
        "('2026-01-01 00:00:00.001', '-1:00:00.5'), ('2026-01-01', '1:0')",
    ),
    ("a bit(20) NOT NULL, b year NOT NULL", "a, b", "(5, 2026), (5, 0), (70000, 1999), (256, 2000)"),
]


def test_each_row_is_read_once_whatever_its_key(source: MySQLSource) -> None:
    for number, (columns, key, values) in enumerate(_KEYS):
        source.execute(
            f"CREATE TABLE t{number} ({columns}, UNIQUE KEY chosen ({key}), v int) CHARACTER SET utf8mb4",
            f"INSERT INTO t{number} ({', '.join(sorted(key.split(', ')))}) VALUES {values}",
            setting="sql_mode = ''",
        )
    source.watch()
    for number, (columns, key, _) in enumerate(_KEYS):
        expected = source.database.fetch(f"SELECT COUNT(*) FROM t{number}")[0][0]
        found: list[Change] = []
        last, is_end = None, False
        while not is_end:
            chunk = _read(source, f"t{number}", limit=1, after=last)
            assert chunk.error is None, (columns, chunk.error)
            found += chunk.rows
            last, is_end = chunk.last, chunk.is_end
            assert len(found) <= expected, (columns, [_row(each) for each in found])
        assert len({each.to_json((*key.split(", "),)) for each in found}) == len(found) == expected, columns


def test_rows_that_changed_since_the_snapshot_come_from_the_stream(source: MySQLSource) -> None:
    source.execute(
        "CREATE TABLE t (name varchar(9) COLLATE utf8mb4_general_ci PRIMARY KEY, v int) CHARACTER SET utf8mb4",
        "INSERT INTO t VALUES ('a', 1), ('B', 1), ('c', 1), ('d', 1), ('e', 1)",
    )
    source.watch()
    _disturb(
        source,
        lambda: source.execute(
            "UPDATE t SET v = 2 WHERE name = 'A'",  # the same row to the server
            "DELETE FROM t WHERE name = 'b'",
            "UPDATE t SET name = 'x' WHERE name = 'c'",
            "INSERT INTO t VALUES ('f', 2)",
        ),
    )
    before: list[Change] = []
    chunk = _read(source, before=before)
    assert [each.row["name"] for each in chunk.rows] == ["d", "e"]
    assert chunk.found == 5
    assert [each.row["name"] for each in before] == ["a", "B", "x", "f"]
    _disturb(source, lambda: source.execute("TRUNCATE TABLE t"))
    assert not _read(source).rows
    assert not _read(source).rows


def test_a_chunk_waits_for_the_end_of_a_transaction_and_muted_ones_tear_it(source: MySQLSource) -> None:
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v int)",
        "CREATE TABLE other (id int PRIMARY KEY)",
        "CREATE TABLE cdc_tasks_marks (id CHAR(36) PRIMARY KEY, says TEXT NOT NULL)",
        "INSERT INTO t VALUES (1, 1), (2, 1)",
    )
    source.watch(batch_size=10)
    source.execute(*["UPDATE t SET v = v + 1"] * 40, "UPDATE t SET v = 1")
    before: list[Change] = []
    assert _read(source, before=before).rows == []  # the stream was behind what the rows show
    assert len(before) == 82
    rows = ", ".join(f"({number})" for number in range(300))
    _disturb(
        source,
        lambda: source.execute(
            "BEGIN", f"INSERT INTO other VALUES {rows}", "UPDATE t SET v = 2 WHERE id = 1", "COMMIT"
        ),
    )
    chunk = _read(source)
    assert [(each.row["id"], each.row["v"]) for each in chunk.rows] == [(2, 1)]
    mark = "INSERT INTO cdc_tasks_marks VALUES (UUID(), '{\"mute\": true}')"
    _disturb(source, lambda: source.execute("BEGIN", mark, "UPDATE t SET v = 3", "COMMIT"))
    assert _read(source).is_torn
    assert [each.row["v"] for each in _read(source).rows] == [3, 3]


def test_a_change_that_the_stream_has_and_nobody_sees_yet_is_waited_for(mysql_source: MySQLSource) -> None:
    """The server writes a transaction to its log, waits, and shows it to others then."""
    source = mysql_source
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v int)", "INSERT INTO t VALUES (1, 1), (2, 1)")
    source.watch()
    source.execute("SET GLOBAL binlog_group_commit_sync_delay = 700000")  # microseconds
    try:
        with in_background(lambda: source.execute("UPDATE t SET v = 2 WHERE id = 1")) as writing:
            (change,) = source.changes(1)
            chunk = _read(source)
            writing.result(at_most(60))
    finally:
        source.execute("SET GLOBAL binlog_group_commit_sync_delay = 0")
    assert change.row["v"] == 2
    assert [each.row["v"] for each in chunk.rows] == [2, 1]


def test_an_xa_commit_that_mariadb_has_logged_and_not_done_is_waited_for(
    mariadb_database: MySQLDatabase,
) -> None:
    """Until the engine has committed it, the server lists it as prepared, and a snapshot may not have its rows."""
    database = mariadb_database
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with closing(connect(database.url)) as connection:
        server = read_server(connection)
    reader = ChunkReader(partial(connect, database.url), server)
    request = ChunkRequest(backfill="a1", schema=database.name, table="t", limit=10)
    names = frozenset({"X'6f6e65',X'32',7"})  # as the log has them
    with closing(database.connect()) as session, session.cursor() as cursor, closing(reader):
        name = "'one', '2', 7"
        for statement in (
            f"XA START {name}",
            "INSERT INTO t VALUES (1)",
            f"XA END {name}",
            f"XA PREPARE {name}",
        ):
            cursor.execute(statement)
        reader.start(ReadWork(request, None, names))
        assert not reader.done.wait(0.3)
        cursor.execute(f"XA COMMIT {name}")
        wait_until(lambda: reader.done.is_set, what="the rows", timeout=30)
        assert reader.error is None
        assert reader.found is not None
        assert [row[0] for row in reader.found.rows] == [b"1"]


def test_an_idle_server_with_a_new_log_gives_the_chunk_its_place(source: MySQLSource) -> None:
    source.execute("CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    for _ in range(2):
        source.watch()
        source.database.execute("FLUSH BINARY LOGS")
        assert [each.row["id"] for each in _read(source).rows] == [1]
        source.stop()


def test_what_is_missing_is_said_with_the_statement_that_gives_it(source: MySQLSource) -> None:
    database = source.database
    user = f"u{database.name[-8:]}"
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY)",
        "CREATE TABLE mine (id int PRIMARY KEY) ENGINE = MyISAM",
        f"CREATE USER {user}@'%'",
        f"GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO {user}@'%'",
        f"GRANT REFERENCES ON {database.name}.* TO {user}@'%'",
    )
    source.watch()
    error = _read(source, "mine").error
    assert error is not None
    assert (error.code, "ENGINE = InnoDB" in (error.hint or "")) == ("backfill_engine", True)
    source.stop()
    url = database.server.url_of(database.name, user=user)
    router = BinlogRouter()
    router.register(database.name, "t", [EventType.ALL, EventType.READ], "a.task")
    findings = check_mysql(url, name=database.name, server_id=77, routes=router.routes, checkpoint=None)
    (finding,) = [each for each in findings if each.code == "backfill_no_right"]
    assert finding.hint == f"GRANT SELECT ON `{database.name}`.`t` TO '{user}'@'%';"
    source.execute(finding.hint)
    findings = check_mysql(url, name=database.name, server_id=77, routes=router.routes, checkpoint=None)
    assert not [each for each in findings if each.code == "backfill_no_right"]
    database.execute(f"DROP USER {user}@'%'")


def test_a_log_that_is_read_without_gtids_is_refused(mysql_source: MySQLSource) -> None:
    mysql_source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    mysql_source.watch()
    decoder: Any = mysql_source._monitor._decoder  # type: ignore[union-attr]
    decoder.progress.gtids = None
    error = _read(mysql_source).error
    assert error is not None
    assert error.code == "backfill_without_gtids"
    assert "gtid_mode" in (error.hint or "")
