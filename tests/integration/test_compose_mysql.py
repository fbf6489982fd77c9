"""The MySQL of docker-compose.yml, made by its own scripts on a real server: each account can do its part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pymysql
import pytest

from harness.given_mysql import MySQLServer
from listener.core.findings import State
from listener.daemon.load_routes import load_router
from listener.mysql.check import check_mysql
from tests.support.compose import initialized_mysql, load_compose, try_commands, variables_of_compose

_SECRETS = {name: f"the '{name.lower()}' \\ of %s" for name in variables_of_compose()}
_SERVICE: dict[str, Any] = load_compose(_SECRETS)["mysql"]
_LISTENER, _WORKER = "cdc_listener", "cdc_worker"
_NAMES = {_LISTENER: "LISTENER_PASSWORD", _WORKER: "WORKER_PASSWORD"}


@pytest.fixture(scope="module")
def server() -> Iterator[MySQLServer]:
    with initialized_mysql(_SERVICE["environment"], _SERVICE["command"]) as (server, _):
        yield server


def test_check_has_nothing_to_say_of_it(server: MySQLServer) -> None:
    url = server.url_of("helpdesk", user=_LISTENER).replace(
        "@", f":{_quoted(_SECRETS['LISTENER_PASSWORD'])}@"
    )
    routes = load_router("listener.routes:setup_router", url).routes
    findings = list(check_mysql(url, name="cdc_tasks", server_id=4711, routes=routes, checkpoint=None))
    assert len(findings) > 10
    assert [each for each in findings if each.state is not State.OK] == []


def test_the_listener_may_read_the_log_and_no_table(server: MySQLServer) -> None:
    assert _run(server, _LISTENER, "SHOW BINARY LOGS")
    for statement in ("SELECT * FROM tickets", "SELECT * FROM mysql.user", "DELETE FROM tickets"):
        with pytest.raises(pymysql.OperationalError, match="denied"):
            _run(server, _LISTENER, statement)


def test_a_worker_may_read_tables_and_write_accounts_and_preferences_alone(server: MySQLServer) -> None:
    assert len(_run(server, _WORKER, "SELECT * FROM priorities")) == 4
    url = server.url_of("helpdesk", user=_WORKER).replace("@", f":{_quoted(_SECRETS['WORKER_PASSWORD'])}@")
    try_commands(url, lambda statement: _run(server, "root", statement))
    for statement in ("DELETE FROM tickets", "CREATE TABLE mine (id integer)", "SHOW BINARY LOGS"):
        with pytest.raises(pymysql.OperationalError, match="denied"):
            _run(server, _WORKER, statement)


def _quoted(password: str) -> str:
    return "".join(f"%{ord(letter):02X}" for letter in password)


def _run(server: MySQLServer, user: str, statement: str) -> list[tuple[Any, ...]]:
    password = _SECRETS[_NAMES[user]].encode() if user in _NAMES else b""
    with (
        closing(
            pymysql.connect(
                host="127.0.0.1", port=server.port, user=user, password=password, database="helpdesk"
            )
        ) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(statement)
        connection.commit()
        return list(cursor.fetchall())
