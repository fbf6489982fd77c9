"""What docs and messages say to paste on MySQL and MariaDB works when it is pasted."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pymysql
import pytest

from harness.given_mysql import MariaDBServer, MySQLServer
from listener.core.findings import Finding, State
from listener.mysql.check import check_mysql, find_in_server, find_in_tables
from listener.mysql.client.connection import connect, fetch
from listener.mysql.client.server import read_server
from listener.mysql.errors import PermissionDeniedError, translate
from listener.mysql.monitor import BinlogMonitor
from listener.router import BinlogRouter, EventType
from tests.support.mysql.source import MySQLDatabase

if TYPE_CHECKING:
    from collections.abc import Iterator

_DOCS = Path(__file__).parents[2] / "docs" / "mysql.md"
_KINDS = [MariaDBServer, MySQLServer]


def block_of(name: str) -> str:
    """Return the configuration that the docs give for a kind of server."""
    section = "mariadb" if name == "mariadb" else "mysqld"
    (block,) = re.findall(rf"```ini\n(\[{section}\]\n.*?)```", _DOCS.read_text(), re.DOTALL)
    return str(block)


def documented(kind: type[MariaDBServer | MySQLServer]) -> MariaDBServer | MySQLServer:
    """Return a server that is set up as the docs say, and in no other way."""

    class Documented(kind):  # type: ignore[misc, valid-type]  # one of two
        def _command(self) -> list[str]:
            file = self.home / "my.cnf"
            file.write_text(block_of(self.name))
            ours = ("--log-bin", "--binlog", "--server-id", "--gtid", "--enforce-gtid")
            command = [each for each in super()._command() if not each.startswith(ours)]
            return [f"--defaults-file={file}" if each == "--no-defaults" else each for each in command]

    return Documented()


@pytest.fixture(params=_KINDS, ids=["mariadb", "mysql"], scope="module")
def documented_server(request: pytest.FixtureRequest) -> Iterator[MariaDBServer | MySQLServer]:
    with documented(request.param) as server:
        yield server


@pytest.fixture(params=_KINDS, ids=["mariadb", "mysql"], scope="module")
def bare_server(request: pytest.FixtureRequest) -> Iterator[MariaDBServer | MySQLServer]:
    """One on which everything is wrong that can be set while it runs."""
    options = [
        *("--binlog-format=MIXED", "--binlog-row-metadata=MINIMAL", "--binlog-row-image=MINIMAL"),
        "--binlog-expire-logs-seconds=3600",
        "--server-id=0",
    ]
    if request.param is MySQLServer:
        options += ["--gtid-mode=OFF", "--enforce-gtid-consistency=OFF"]
    with request.param(arguments=options) as server:
        yield server


def statements(hint: str) -> list[str]:
    """Return the SQL in a hint, as a client takes it that is given whole lines."""
    found = []
    for line in hint.splitlines():
        if line.startswith(("SET ", "GRANT ", "CREATE ", "ALTER ", "FLUSH ", "TRUNCATE ")):
            sql, _, rest = line.rpartition(";")
            assert not rest.strip() or rest.strip().startswith("--"), line
            found += [f"{each};" for each in sql.split(";")]
    return found


def paste(server: MariaDBServer | MySQLServer, *pasted: str) -> None:
    MySQLDatabase(name="mysql", server=server).execute(*pasted)


def findings(url: str) -> list[Finding]:
    with closing(connect(url)) as connection:
        return list(find_in_server(read_server(connection)))


def test_a_server_that_is_set_up_as_the_docs_say_is_ready(
    documented_server: MariaDBServer | MySQLServer,
) -> None:
    assert [each for each in findings(documented_server.url_of("mysql")) if each.state is not State.OK] == []


def test_the_account_of_the_docs_may_do_what_the_listener_needs(
    documented_server: MariaDBServer | MySQLServer,
) -> None:
    (block,) = re.findall(r"```sql\n(CREATE USER.*?)```", _DOCS.read_text(), re.DOTALL)
    paste(documented_server, *block.replace("…", "secret").strip().split("\n"))
    paste(documented_server, "CREATE DATABASE helpdesk", "CREATE TABLE helpdesk.tickets (id int PRIMARY KEY)")
    router = BinlogRouter()
    router.register("helpdesk", "tickets", EventType.ALL, "a.task")
    url = documented_server.url_of("helpdesk", user="cdc:secret")
    found = check_mysql(url, name="hints", server_id=4711, routes=router.routes, checkpoint=None)
    assert [each for each in found if each.state is not State.OK] == []
    # REFERENCES on the databases of the routes is enough, too.
    paste(
        documented_server,
        "REVOKE SELECT ON *.* FROM 'cdc'@'%'",
        "GRANT REFERENCES ON helpdesk.* TO 'cdc'@'%'",
    )
    found = check_mysql(url, name="hints", server_id=4711, routes=router.routes, checkpoint=None)
    assert [each for each in found if each.state is not State.OK] == []


def test_each_setting_that_check_complains_of_is_mended_by_its_hint(
    bare_server: MariaDBServer | MySQLServer,
) -> None:
    url = bare_server.url_of("mysql")
    wrong = [each for each in findings(url) if each.state is not State.OK]
    expected = {"binlog_format", "binlog_row_metadata", "binlog_row_image", "log retention"}
    if bare_server.name == "mysql":  # MariaDB makes 1 of server_id=0
        expected |= {"server_id", "GTIDs"}
    assert {each.what for each in wrong} == expected
    for each in wrong:
        pasted = statements(each.hint)
        assert pasted, each
        paste(bare_server, *pasted)
    assert [each for each in findings(url) if each.state is not State.OK] == []


@pytest.mark.parametrize("schema", ["unseen", "un`seen", "unse*", "[u]nseen"])
def test_a_schema_that_the_account_does_not_see_is_shown_by_the_hint(
    documented_server: MariaDBServer | MySQLServer, schema: str
) -> None:
    database = "un`seen" if "`" in schema else "unseen"
    name = "`{}`".format(database.replace("`", "``"))
    paste(
        documented_server,
        "DROP USER IF EXISTS 'blind'@'%'",
        "CREATE USER 'blind'@'%' IDENTIFIED BY 'secret'",
        f"CREATE DATABASE IF NOT EXISTS {name}",
        f"CREATE TABLE IF NOT EXISTS {name}.t (id int PRIMARY KEY)",
    )
    router = BinlogRouter()
    router.register(schema, "t", EventType.ALL, "a.task")
    url = documented_server.url_of("", user="blind:secret")
    with closing(connect(url)) as connection:
        (found,) = find_in_tables(connection, router.routes)
    assert found.state is not State.OK
    (pasted,) = re.findall(r"GRANT .*;", found.hint)
    paste(documented_server, pasted)
    with closing(connect(url)) as connection:
        (found,) = find_in_tables(connection, router.routes)
    assert found.state is State.OK


def test_rights_that_are_missing_are_given_by_the_hint_to_the_account_that_asked(
    documented_server: MariaDBServer | MySQLServer,
) -> None:
    paste(
        documented_server,
        "CREATE USER 'poor'@'127.0.0.%' IDENTIFIED BY 'secret'",
        "GRANT SELECT ON *.* TO 'poor'@'127.0.0.%'",
    )
    url = documented_server.url_of("mysql", user="poor:secret")
    with closing(connect(url)) as connection, pytest.raises(PermissionDeniedError) as caught:
        fetch(connection, "SHOW BINARY LOGS")
    assert "'poor'@'127.0.0.%'" in (caught.value.hint or "")
    paste(documented_server, "GRANT REPLICATION CLIENT ON *.* TO 'poor'@'127.0.0.%'")
    monitor = BinlogMonitor(url, name="poor", routes=())
    with closing(monitor):
        monitor.open(saved=None)
        with pytest.raises(PermissionDeniedError) as caught:
            list(monitor.batches(None))
    assert "'poor'@'127.0.0.%'" in (caught.value.hint or "")
    paste(documented_server, *statements(caught.value.hint or ""))
    with closing(connect(url)) as connection:
        assert fetch(connection, "SHOW BINARY LOGS")


@pytest.mark.parametrize(
    ("code", "text", "mariadb_only", "mysql_only"),
    [
        (1045, "Access denied for user", False, False),
        (1130, "Host '…' is not allowed to connect", False, False),
        (1129, "Host '…' is blocked", True, True),
        (1236, "Cannot replicate anonymous transaction when @@GLOBAL.GTID_MODE = ON", False, True),
        (1236, "log event entry exceeded max_allowed_packet", False, False),
        (1236, "Misconfigured master - server id was not set", False, False),
    ],
)
def test_the_sql_in_a_message_can_be_pasted(
    documented_server: MariaDBServer | MySQLServer, code: int, text: str, mariadb_only: bool, mysql_only: bool
) -> None:
    is_mariadb = documented_server.name == "mariadb"
    if mysql_only and not mariadb_only and is_mariadb:
        return
    error: Any = pymysql.OperationalError(code, text)
    hint = (translate(error, "'new'@'%'").hint or "").replace("…", "Secret-1")
    if mysql_only and mariadb_only:
        (hint,) = re.findall(r"MariaDB: (.*)" if is_mariadb else r"MySQL: (.*?;)", hint)
    pasted = re.findall(r"(?:SET|GRANT|CREATE|ALTER|FLUSH|TRUNCATE) [^;]*;", hint)
    assert pasted, hint
    if pasted[0].startswith("ALTER USER"):
        paste(documented_server, "CREATE USER IF NOT EXISTS 'new'@'%'")
    else:
        paste(documented_server, "DROP USER IF EXISTS 'new'@'%'")
    paste(documented_server, *pasted)
