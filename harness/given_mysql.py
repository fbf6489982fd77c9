"""MariaDB and MySQL for tests: those of the demo, or an existing MySQL."""

from __future__ import annotations

import os
from contextlib import closing
from typing import Self

import harness.mysql_servers
from harness.mysql_servers import MariaDBServer
from harness.server_process import ServerError
from listener.core.findings import raise_problems
from listener.mysql.check import find_in_server
from listener.mysql.client.connection import Address, connect
from listener.mysql.client.server import read_server

__all__ = [
    "KINDS",
    "WITHOUT_GTIDS",
    "GivenMySQLServer",
    "MariaDBServer",
    "MySQLServer",
    "server_of_kind",
    "shared_mysql_server",
]

WITHOUT_GTIDS = ("--gtid-mode=OFF", "--enforce-gtid-consistency=OFF")
# The parts of a listener's position differ between these.
KINDS = ("mariadb", "mysql", "mysql without GTIDs")


class MySQLServer(harness.mysql_servers.MySQLServer):
    """MySQL with GTIDs; killed at the end, when its data are deleted too.

    At shutdown it waits eight more seconds if it still sees a replica. A listener is one, even for a while
    after it has ended: the server notices when it has something to send. `stop` shuts it down nevertheless.
    """

    def close(self) -> None:
        self.kill()
        super().close()


class GivenMySQLServer:
    """The server of CDC_TEST_MYSQL_URL, for tests that need a running one.

    Tests that stop or configure a server start a `MySQLServer` instead.
    """

    name: str  # mysql or mariadb

    def __init__(self, url: str) -> None:
        """`url` is the administrator's: tests create databases and users, and temporarily set global variables."""
        self._address = Address.parse(url)
        self.url = url

    @property
    def port(self) -> int:
        return self._address.port

    def url_of(self, database: str, *, user: str | None = None) -> str:
        """Return a database's URL; `user` (`name:password`) replaces the administrator."""
        address, question, options = self.url.partition("?")
        scheme, _, rest = address.partition("://")
        login, _, place = rest.rpartition("@")
        return f"{scheme}://{user or login}@{place.partition('/')[0]}/{database}{question}{options}"

    def __enter__(self) -> Self:
        with closing(connect(self.url)) as connection:
            server = read_server(connection)
        raise_problems(list(find_in_server(server)))
        if not server.has_gtids:
            raise ServerError(
                "the server of CDC_TEST_MYSQL_URL has no GTIDs",
                hint="start it with gtid_mode=ON and enforce_gtid_consistency=ON",
            )
        self.name = server.kind
        return self

    def __exit__(self, *_: object) -> None:
        pass


def shared_mysql_server() -> GivenMySQLServer | MySQLServer:
    """Return the server that tests share: that of CDC_TEST_MYSQL_URL, or one to start."""
    url = os.environ.get("CDC_TEST_MYSQL_URL")
    return GivenMySQLServer(url) if url else MySQLServer()


def server_of_kind(kind: str) -> MariaDBServer | MySQLServer:
    """Return one of `KINDS`, for the caller to start."""
    if kind == "mariadb":
        return MariaDBServer()
    return MySQLServer(arguments=WITHOUT_GTIDS if kind == "mysql without GTIDs" else ())
