"""The MariaDB and MySQL that tests start: row-based binlogs, data that outlive a crash."""

from __future__ import annotations

from contextlib import closing

import pymysql
import pytest

from harness.given_mysql import MariaDBServer, MySQLServer


@pytest.mark.parametrize("kind", [MariaDBServer, MySQLServer])
def test_the_binlog_has_rows_with_names_and_outlives_a_crash(
    kind: type[MariaDBServer | MySQLServer],
) -> None:
    with kind() as server:
        _execute(server, "CREATE DATABASE kept")
        _execute(server, "CREATE TABLE kept.numbers (number integer PRIMARY KEY)")
        _execute(server, "INSERT INTO kept.numbers VALUES (1)")
        server.kill()
        server.start()
        assert _execute(server, "SELECT number FROM kept.numbers") == ((1,),)
        settings = _execute(server, "SELECT @@log_bin, @@binlog_format, @@binlog_row_metadata")
        assert settings == ((1, "ROW", "FULL"),)


def _execute(server: MariaDBServer | MySQLServer, statement: str) -> tuple[tuple[object, ...], ...]:
    with (
        closing(
            pymysql.connect(host="127.0.0.1", port=server.port, user="root", autocommit=True)
        ) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(statement)
        return cursor.fetchall()
