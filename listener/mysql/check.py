"""Whether this MySQL or MariaDB is ready: everything that could keep the listener from running, before it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from cdc_tasks.errors import CDCError
from cdc_tasks.routing.router import Route
from listener.core.findings import Finding, State, finding_from
from listener.mysql.client.connection import Connection, account, connect, fetch
from listener.mysql.client.server import Server, current_position, read_server, replicas
from listener.mysql.findings import find_in_grants, find_in_server, find_in_tables
from listener.mysql.log.position import BinlogPosition
from listener.mysql.start.gaps import find_gap
from listener.mysql.start.preparation import read_log
from listener.mysql.stream import replica_uuid

__all__ = ["check_mysql"]


def check_mysql(
    url: str, *, name: str, server_id: int, routes: Sequence[Route], checkpoint: str | None
) -> Iterator[Finding]:
    """Yield what was found, problem or not; never raises CDCError. `name` is CDC_NAME."""
    try:
        with closing(connect(url)) as connection:
            server = read_server(connection)
            yield Finding(
                what="connection", found=f"{account(connection)} at {connection.host}:{connection.port}"
            )
            yield _encryption(connection)
            yield from find_in_server(server)
            yield from find_in_grants(connection)
            yield from find_in_tables(connection, routes)
            if server.variable("log_bin") == "ON":
                yield _server_id(connection, server, name, server_id)
                yield _checkpoint(url, connection, server, checkpoint)
    except CDCError as error:
        yield finding_from("connection", error)


def _encryption(connection: Connection[Any]) -> Finding:
    cipher = str(fetch(connection, "SHOW SESSION STATUS LIKE 'Ssl_cipher'")[0][1])
    is_local = connection.host in {"localhost", "127.0.0.1", "::1"} or connection.unix_socket
    if cipher:
        return Finding(what="TLS", found=cipher)
    return Finding(
        what="TLS",
        state=State.OK if is_local else State.WARNING,
        found="not encrypted",
        cure=""
        if is_local
        else "Turn TLS on in the server, and write ?ssl_ca=/path/of/ca.pem in DATABASE_URL.",
    )


def _server_id(connection: Connection[Any], server: Server, name: str, server_id: int) -> Finding:
    other = replicas(connection, server).get(server_id)
    if str(server_id) == server.variable("server_id") or (other and other != replica_uuid(name)):
        cure = "CDC_SERVER_ID=…, different from the server's and each replica's"
        return Finding(what="CDC_SERVER_ID", state=State.PROBLEM, found=f"{server_id} is taken", cure=cure)
    return Finding(what="CDC_SERVER_ID", found=str(server_id))


def _checkpoint(url: str, connection: Connection[Any], server: Server, checkpoint: str | None) -> Finding:
    current = current_position(connection, server)
    if checkpoint is None:
        return Finding(
            what="checkpoint", found=f"none: reading will begin at {current.file}:{current.offset}"
        )
    after = BinlogPosition.parse(checkpoint)
    gap = find_gap(server, after, read_log(connection, server, url, after))
    if gap:
        return finding_from("checkpoint", gap)
    return Finding(what="checkpoint", found=f"{after.file}:{after.offset}, and the log reaches that far")
