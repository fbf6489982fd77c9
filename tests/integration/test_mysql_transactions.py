"""Transactions in a binlog, on MariaDB and on MySQL: rolled back, prepared, compressed."""

from __future__ import annotations

from tests.support.mysql.source import MySQLSource

_TABLE = "CREATE TABLE people (id integer PRIMARY KEY, name varchar(50), age integer)"


def test_a_transaction_of_several_tables_keeps_its_order(source: MySQLSource) -> None:
    source.execute("CREATE TABLE a (id int PRIMARY KEY)", "CREATE TABLE b (id int PRIMARY KEY)")
    source.watch()
    source.execute("BEGIN", *(f"INSERT INTO {'ab'[n % 2]} VALUES ({n})" for n in range(6)), "COMMIT")
    assert [(each.table, each.row["id"]) for each in source.changes(6)] == [
        ("ab"[n % 2], n) for n in range(6)
    ]


def test_what_is_rolled_back_does_not_come(source: MySQLSource) -> None:
    source.execute(_TABLE)
    source.watch("people")
    source.execute("BEGIN", "INSERT INTO people (id) VALUES (1)", "ROLLBACK")
    source.execute(
        "BEGIN",
        "INSERT INTO people (id) VALUES (2)",
        "SAVEPOINT a",
        "INSERT INTO people (id) VALUES (3)",
        "ROLLBACK TO a",
        "INSERT INTO people (id) VALUES (4)",
        "COMMIT",
    )
    assert [each.row["id"] for each in source.changes(2)] == [2, 4]


def test_a_rollback_that_is_in_the_log_takes_its_rows_back(source: MySQLSource) -> None:
    """MariaDB logs a transaction that was rolled back when it made or dropped a temporary table."""
    source.execute(_TABLE)
    source.watch("people")
    temporary = ("CREATE TEMPORARY TABLE t (id int)", "DROP TEMPORARY TABLE t")
    source.execute("BEGIN", "INSERT INTO people (id) VALUES (1)", *temporary, "ROLLBACK")
    source.execute(
        "BEGIN", "INSERT INTO people (id) VALUES (2)", "SAVEPOINT a", "INSERT INTO people (id) VALUES (3)",
        *temporary, "ROLLBACK TO a", "INSERT INTO people (id) VALUES (4)", "COMMIT",
    )  # fmt: skip
    assert [each.row["id"] for each in source.changes(2)] == [2, 4]


def test_a_large_transaction_that_is_rolled_back_in_the_log_does_not_come_in_part(
    source: MySQLSource,
) -> None:
    source.execute(_TABLE)
    source.watch("people", batch_size=10)
    temporary = ("CREATE TEMPORARY TABLE t (id int)", "DROP TEMPORARY TABLE t")
    rows = [f"INSERT INTO people (id) VALUES ({n * 10}), ({n * 10 + 1})" for n in range(30)]
    source.execute("BEGIN", *rows, *temporary, "ROLLBACK")
    source.execute(
        "BEGIN", "SAVEPOINT a", *rows[:10], *temporary, "ROLLBACK TO a", *rows[:8], "SAVEPOINT b", *rows[8:20],
        *temporary, "ROLLBACK TO b", *rows[20:], "COMMIT",
    )  # fmt: skip
    numbers = [n * 10 + more for n in (*range(8), *range(20, 30)) for more in (0, 1)]
    found = source.changes(36)
    assert [each.row["id"] for each in found] == numbers
    assert [int(each.position.rpartition(":")[2]) for each in found] == list(range(36))


def test_a_prepared_transaction_comes_when_it_is_committed(source: MySQLSource) -> None:
    source.execute(_TABLE)
    source.watch("people")
    source.execute("XA START 'a','b',7", "INSERT INTO people (id) VALUES (1), (2)", "XA END 'a','b',7",
                   "XA PREPARE 'a','b',7")  # fmt: skip
    source.execute("XA START 'r'", "INSERT INTO people (id) VALUES (8)", "XA END 'r'", "XA PREPARE 'r'")
    source.execute("INSERT INTO people (id) VALUES (3)", "XA ROLLBACK 'r'", "XA COMMIT 'a','b',7")
    source.execute(
        "XA START 'o'", "INSERT INTO people (id) VALUES (4)", "XA END 'o'", "XA COMMIT 'o' ONE PHASE"
    )
    assert [each.row["id"] for each in source.changes(4)] == [3, 1, 2, 4]
    # A backfill on MariaDB waits until the engine has done what the log has; what is prepared once more is another one.
    decoder = source.decoder
    assert decoder.committed_by_name == {"X'61',X'62',7"}
    source.execute("XA START 'a','b',7", "INSERT INTO people (id) VALUES (9)", "XA END 'a','b',7",
                   "XA PREPARE 'a','b',7")  # fmt: skip
    source.execute("INSERT INTO people (id) VALUES (10)")
    assert [each.row["id"] for each in source.changes(1)] == [10]
    assert not decoder.committed_by_name
    source.execute("XA ROLLBACK 'a','b',7")


def test_a_prepared_transaction_is_not_lost_when_the_listener_restarts_before_its_commit(
    source: MySQLSource,
) -> None:
    source.execute(_TABLE)
    source.watch("people")
    source.execute("XA START 'a'", "INSERT INTO people (id) VALUES (1), (2)", "XA END 'a'", "XA PREPARE 'a'")
    source.execute("INSERT INTO people (id) VALUES (3)", "INSERT INTO people (id) VALUES (4)")
    assert [each.row["id"] for each in source.changes(2)] == [3, 4]
    source.stop()
    source.watch("people")
    source.execute("INSERT INTO people (id) VALUES (5)", "XA COMMIT 'a'")
    assert [each.row["id"] for each in source.changes(3)] == [5, 1, 2]
    source.stop()
    source.watch("people")
    source.execute("INSERT INTO people (id) VALUES (6)")
    assert [each.row["id"] for each in source.changes(1)] == [6]


def test_compressed_transactions_are_read(source: MySQLSource) -> None:
    source.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
    mariadb = source.database.is_mariadb
    if mariadb:
        source.execute("SET GLOBAL log_bin_compress = ON", "SET GLOBAL log_bin_compress_min_len = 10")
    try:
        source.watch()
        source.execute(
            "BEGIN",
            *(f"INSERT INTO t VALUES ({n}, repeat('x', 1000))" for n in range(50)),
            "COMMIT",
            "UPDATE t SET a = repeat('y', 5000) WHERE id < 10",
            "DELETE FROM t WHERE id < 10",
            "TRUNCATE t",
            setting="wait_timeout = 60" if mariadb else "binlog_transaction_compression = ON",
        )
        found = source.changes(71)
    finally:
        if mariadb:
            source.execute("SET GLOBAL log_bin_compress = OFF")
    assert [each.row["id"] for each in found[:50]] == list(range(50))
    assert found[50].after == {"id": 0, "a": "y" * 5000}
    assert [each.event.value for each in found[50:]] == ["update"] * 10 + ["delete"] * 10 + ["truncate"]
