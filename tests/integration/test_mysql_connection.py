"""What an operator meets between the listener and MySQL or MariaDB, and what `check` and `status` say."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from harness.given_mysql import MariaDBServer, MySQLServer
from harness.waiting import wait_until
from listener.core.findings import State
from listener.core.source import SourceError, SourceLostError
from listener.core.source_status import Reader
from listener.mysql import stream
from listener.mysql.check import check_mysql
from listener.mysql.client import replication
from listener.mysql.client.connection import Session, connect, fetch_value
from listener.mysql.monitor import BinlogMonitor
from listener.mysql.status import read_mysql_status
from listener.router import BinlogRouter, EventType
from tests.acceptance.network import Cable
from tests.support.certificates import write_certificates
from tests.support.listening import SAVED
from tests.support.mysql.source import MySQLDatabase, MySQLSource

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from listener.core.findings import Finding


def _routes(database: MySQLDatabase, table: str = "t", columns: list[str] | None = None) -> BinlogRouter:
    router = BinlogRouter()
    router.register(database.name, table, EventType.ALL, "a.task", columns=columns)
    return router


def _check(
    database: MySQLDatabase, url: str | None = None, table: str = "t", **options: object
) -> list[Finding]:
    routes = _routes(database, table, **options).routes  # type: ignore[arg-type]
    return list(
        check_mysql(url or database.url, name="checked", server_id=4712, routes=routes, checkpoint=None)
    )


def _problems(findings: list[Finding]) -> dict[str, str]:
    return {each.what: each.hint for each in findings if each.state is State.PROBLEM}


@pytest.fixture
def account(any_mysql: MySQLDatabase) -> Iterator[MySQLDatabase]:
    """A database with the user `cdc`, whose password is `p@:/ß`, and who may do nothing."""
    any_mysql.execute("CREATE USER 'cdc'@'%' IDENTIFIED BY 'p@:/ß'", "CREATE TABLE t (id int PRIMARY KEY)")
    try:
        yield any_mysql
    finally:
        any_mysql.execute("DROP USER 'cdc'@'%'")


def _url(database: MySQLDatabase, password: str = "p%40%3A%2F%C3%9F") -> str:
    return database.server.url_of("", user=f"cdc:{password}")


def test_check_names_the_missing_privileges_with_the_grant_and_then_is_content(
    account: MySQLDatabase,
) -> None:
    problems = _problems(_check(account, _url(account)))
    assert "GRANT SELECT, REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO 'cdc'@'%';" in problems.values()
    account.execute("GRANT SELECT, REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO 'cdc'@'%'")
    assert _problems(_check(account, _url(account))) == {}


def test_the_privileges_that_check_asks_for_are_enough(account: MySQLDatabase) -> None:
    account.execute("GRANT SELECT, REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO 'cdc'@'%'")
    monitor = BinlogMonitor(_url(account), name=account.name, routes=_routes(account).routes)
    with closing(monitor):
        monitor.open(saved=None)
        batches = monitor.batches(None)
        next(batches)
        account.execute("INSERT INTO t VALUES (1)")
        assert [change.row["id"] for change in next(b for b in batches if b.changes).changes] == [1]


def test_a_wrong_password_is_told_without_showing_it(account: MySQLDatabase) -> None:
    with pytest.raises(SourceError) as caught:
        connect(_url(account, "guess"))
    assert "ALTER USER" in (caught.value.hint or "")
    assert "guess" not in str(caught.value)


def test_a_server_that_is_away_is_tried_again() -> None:
    with pytest.raises(SourceLostError, match="connect"):
        connect("mysql://root@127.0.0.1:1/")


def test_every_finding_has_its_code(any_mysql: MySQLDatabase) -> None:
    any_mysql.execute("CREATE TABLE t (id int PRIMARY KEY)")
    assert {each.code for each in _check(any_mysql)} == {
        *(
            "connection",
            "tls",
            "version",
            "log_bin",
            "binlog_format",
            "binlog_row_metadata",
            "binlog_row_image",
        ),
        *(
            "server_id",
            "gtids",
            "log_retention",
            "privilege_replication_slave",
            "privilege_replication_client",
        ),
        *("table", "cdc_server_id", "checkpoint"),
    }


def test_check_finds_tables_and_columns_that_do_not_exist(any_mysql: MySQLDatabase) -> None:
    any_mysql.execute("CREATE TABLE t (id int PRIMARY KEY)")
    assert f"table {any_mysql.name}.gone" in _problems(_check(any_mysql, table="gone"))
    assert f"table {any_mysql.name}.t" in _problems(_check(any_mysql, columns=["id", "name"]))


@pytest.mark.parametrize(
    ("variable", "value", "good"),
    [("binlog_row_metadata", "MINIMAL", "FULL"), ("binlog_format", "MIXED", "ROW")],
)
def test_a_log_that_cannot_be_used_is_a_problem_for_check_and_run(
    any_mysql: MySQLDatabase, variable: str, value: str, good: str
) -> None:
    any_mysql.execute("CREATE TABLE t (id int PRIMARY KEY)", f"SET GLOBAL {variable} = '{value}'")
    try:
        assert f"{variable} = {good}" in _problems(_check(any_mysql))[variable]
        with pytest.raises(SourceError, match=variable):
            BinlogMonitor(any_mysql.url, name="run", routes=()).open(saved=None)
    finally:
        any_mysql.execute(f"SET GLOBAL {variable} = '{good}'")


def test_status_tells_who_reads_and_how_far(source: MySQLSource) -> None:
    source.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
    assert read_mysql_status(source.database.url, source.name, None).reader is Reader.NEVER_STARTED
    source.watch()
    running = read_mysql_status(source.database.url, source.name, source.position)
    assert (running.reader, running.lag_bytes) == (Reader.RUNNING, 0)
    source.execute("INSERT INTO t VALUES (1, repeat('x', 10000))", "FLUSH BINARY LOGS")
    assert (read_mysql_status(source.database.url, source.name, source.position).lag_bytes or 0) > 10_000
    source.stop()
    assert read_mysql_status(source.database.url, source.name, source.position).reader is Reader.NONE


def test_a_server_that_falls_silent_is_noticed_and_read_again(
    any_mysql: MySQLDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replication, "HEARTBEAT", 0.5)
    monkeypatch.setattr(stream, "_LIVENESS_TIMEOUT", 1.5)
    any_mysql.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with Cable(any_mysql.server.port) as cable:
        url = any_mysql.url.replace(f":{any_mysql.server.port}/", f":{cable.port}/")
        monitor = BinlogMonitor(url, name=any_mysql.name, routes=_routes(any_mysql).routes)
        with closing(monitor):
            monitor.open(saved=None)
            batches = monitor.batches(None)
            for _, batch in zip(range(16), batches, strict=False):  # heartbeats keep it alive
                position = batch.position
            cable.stall(new_ones=False)
            with pytest.raises(SourceLostError, match="sent nothing for"):
                for _ in batches:
                    pass
            cable.mend()
            any_mysql.execute("INSERT INTO t VALUES (1)")
            monitor.open(saved=SAVED)
            found = next(batch for batch in monitor.batches(position) if batch.changes)
            assert [change.row["id"] for change in found.changes] == [1]


@pytest.fixture(params=[MariaDBServer, MySQLServer], ids=["mariadb", "mysql"])
def tls(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[MySQLDatabase, Path]]:
    """A server whose certificate names `localhost`, and the directory with its authority's."""
    write_certificates(tmp_path, host="localhost")
    files = {"ca": "ca.crt", "cert": "server.crt", "key": "server.key"}
    arguments = [f"--ssl-{name}={tmp_path}/{file}" for name, file in files.items()]
    with request.param(arguments=arguments) as server:
        database = MySQLDatabase(name="mysql", server=server)
        plugin = "" if database.is_mariadb else "WITH caching_sha2_password"
        database.execute(
            f"CREATE USER 'cdc'@'%' IDENTIFIED {plugin} BY 'secret'", "GRANT ALL ON *.* TO 'cdc'@'%'"
        )
        database.execute("ALTER USER 'cdc'@'%' REQUIRE SSL")
        yield database, tmp_path


def test_the_server_and_its_name_are_verified_over_tls(tls: tuple[MySQLDatabase, Path]) -> None:
    database, directory = tls
    port = database.server.port
    authority = f"?ssl_ca={directory}/ca.crt"
    with closing(connect(f"mysql://cdc:secret@localhost:{port}/{authority}")) as connection:
        assert fetch_value(connection, "SELECT CURRENT_USER()") == "cdc@%"
    with pytest.raises(SourceError, match="certificate") as caught:
        connect(f"mysql://cdc:secret@127.0.0.1:{port}/{authority}")
    assert "ssl_ca" in (caught.value.hint or "")
    connect(f"mysql://cdc:secret@127.0.0.1:{port}/{authority}&ssl_check_hostname=false").close()
    with MySQLSource(MySQLDatabase(name="shop", server=database.server)) as source:
        database.execute("CREATE DATABASE shop", "CREATE TABLE shop.t (id int PRIMARY KEY)")
        url = f"mysql+pymysql://cdc:secret@localhost:{port}/{authority}"
        monitor = BinlogMonitor(url, name="tls", routes=_routes(source.database).routes)
        with closing(monitor):
            monitor.open(saved=None)
            batches = monitor.batches(None)
            next(batches)
            source.execute(*(f"INSERT INTO t VALUES ({n})" for n in range(50)))
            seen: list[int] = []
            for batch in batches:
                seen += [change.row["id"] for change in batch.changes]
                if len(seen) == 50:
                    break
            assert seen == list(range(50))


def test_a_session_for_questions_is_opened_again_where_the_server_ended_it(any_mysql: MySQLDatabase) -> None:
    session = Session(lambda: connect(any_mysql.url))
    ((first,),) = session.fetch("SELECT CONNECTION_ID()")
    assert session.fetch("SELECT CONNECTION_ID()") == [(first,)]
    any_mysql.execute(f"KILL {first}")
    gone = f"SELECT 1 FROM information_schema.PROCESSLIST WHERE ID = {first}"
    wait_until(lambda: not any_mysql.fetch(gone), what="the session to be ended")
    ((second,),) = session.fetch("SELECT CONNECTION_ID()")
    assert second != first
    session.close()
    session.close()
    (ours,) = session.fetch("SELECT %s", ["asked after it was closed"])
    assert ours == ("asked after it was closed",)
    session.close()
