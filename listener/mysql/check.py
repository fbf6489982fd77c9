"""Checks that this MySQL or MariaDB is ready: finds in advance what could prevent the listener from running."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Final

from cdc_tasks.changes import EventType
from cdc_tasks.errors import CDCError
from cdc_tasks.routing.enqueued import CREATE_MARKS
from cdc_tasks.routing.router import Route
from cdc_tasks.words import counted
from listener.core.findings import Finding, State, finding_from
from listener.mysql.backfill.read_column import quoted_name
from listener.mysql.backfill.readable_table import find_in_reads
from listener.mysql.client.connection import Connection, account, connect, fetch
from listener.mysql.client.server import Host, Server, current_position, read_server, replicas
from listener.mysql.codec.marks import MARKS_TABLE
from listener.mysql.errors import grant, setting
from listener.mysql.log.position import BinlogPosition
from listener.mysql.start.gaps import find_gap
from listener.mysql.start.start_position import read_log
from listener.mysql.stream import replica_uuid
from listener.mysql.tables.old_values import find_in_old_values
from listener.mysql.tables.table_description import selected_tables

__all__ = ["check_mysql", "find_in_grants", "find_in_server", "find_in_tables"]


def check_mysql(
    url: str,
    *,
    name: str,
    server_id: int,
    routes: Sequence[Route],
    checkpoint: str | None,
    needs_marks: bool = False,
) -> Iterator[Finding]:
    """Yield the findings, problems or not. Never raise CDCError. `name` is CDC_NAME.

    `needs_marks`: transactions may enqueue tasks.
    """
    try:
        with closing(connect(url)) as connection:
            server = read_server(connection)
            yield Finding(
                what="connection",
                code="connection",
                found=f"{account(connection)} at {connection.host}:{connection.port}",
            )
            if server.host is not None:
                yield _finding("host", server.host.value)
            yield _encryption(connection)
            yield from find_in_server(server)
            yield from find_in_grants(connection)
            yield from find_in_tables(connection, routes)
            yield from find_in_old_values(
                connection, routes, server.variable("binlog_row_image"), mariadb=server.is_mariadb
            )
            yield from find_in_reads(connection, _tables_to_read(connection, routes))
            if needs_marks:
                yield _marks(connection, server)
            if server.variable("log_bin") == "ON":
                yield _server_id(connection, server, name, server_id)
                yield _checkpoint(url, connection, server, checkpoint)
    except CDCError as error:
        yield finding_from("connection", error)


def _marks(connection: Connection[Any], server: Server) -> Finding:
    """Return whether there is a table by whose rows a transaction enqueues, and whether others wait for such rows."""
    query = "SELECT TABLE_SCHEMA, ENGINE FROM information_schema.TABLES WHERE TABLE_NAME = %s"
    engines = {str(schema): str(engine) for schema, engine in fetch(connection, query, [MARKS_TABLE])}
    found = sorted(engines)
    in_innodb = [] if server.is_mariadb else [schema for schema in found if engines[schema] == "InnoDB"]
    if in_innodb:
        return _finding(
            "marks",
            f"{MARKS_TABLE} in {', '.join(in_innodb)} has the engine InnoDB: after a rollback to a savepoint in "
            "REPEATABLE READ, the marks of other transactions wait or end in a deadlock",
            State.WARNING,
            " ".join(
                f"ALTER TABLE {quoted_name(schema)}.{MARKS_TABLE} ENGINE = BLACKHOLE;" for schema in in_innodb
            ),
        )
    if found:
        return _finding("marks", f"{MARKS_TABLE} in {', '.join(found)}")
    return _finding(
        "marks",
        f"routes accept what a transaction enqueues, but there is no table {MARKS_TABLE}",
        State.WARNING,
        f"In the application's database: {CREATE_MARKS}",
    )


def _encryption(connection: Connection[Any]) -> Finding:
    cipher = str(fetch(connection, "SHOW SESSION STATUS LIKE 'Ssl_cipher'")[0][1])
    is_local = connection.host in {"localhost", "127.0.0.1", "::1"} or connection.unix_socket
    if cipher:
        return Finding(what="TLS", code="tls", found=cipher)
    return _finding(
        "tls",
        "not encrypted",
        State.OK if is_local else State.WARNING,
        "Turn on TLS in the server, and write ?ssl_ca=/path/of/ca.pem in DATABASE_URL.",
        what="TLS",
    )


def _server_id(connection: Connection[Any], server: Server, name: str, server_id: int) -> Finding:
    other = replicas(connection, server).get(server_id)
    if str(server_id) == server.variable("server_id") or (other and other != replica_uuid(name)):
        hint = "CDC_SERVER_ID=…, different from the server's and each replica's"
        return _finding("cdc_server_id", f"{server_id} is taken", State.PROBLEM, hint, what="CDC_SERVER_ID")
    return _finding("cdc_server_id", str(server_id), what="CDC_SERVER_ID")


def _checkpoint(url: str, connection: Connection[Any], server: Server, checkpoint: str | None) -> Finding:
    current = current_position(connection, server)
    if checkpoint is None:
        return _finding("checkpoint", f"none: reading will begin at {current.file}:{current.offset}")
    after = BinlogPosition.parse(checkpoint)
    gap = find_gap(server, after, read_log(connection, server, url, after))
    if gap:
        return finding_from("checkpoint", gap)
    return _finding("checkpoint", f"{after.file}:{after.offset}; the server still has the log after it")


# --- The findings ---------------------------------------------------------------------------------------

_Name = tuple[str, str]  # schema and table

_OLDEST: Final = {"mysql": (8, 0, 14), "mariadb": (10, 5, 0)}  # whose logs can have the names of columns
_WHOLE: Final = frozenset({"FULL", "FULL_NODUP"})  # FULL_NODUP (MariaDB 11.4): the new row has what changed
_SHORT_RETENTION: Final = 24 * 3600  # seconds
_REPLICATION: Final = re.compile(r"ALL PRIVILEGES|REPLICATION SLAVE\b|REPLICATION REPLICA\b")
_STATUS: Final = re.compile(r"ALL PRIVILEGES|REPLICATION CLIENT|BINLOG MONITOR|SUPER\b")


def find_in_server(server: Server) -> Iterator[Finding]:
    """Yield the findings about the server's variables."""
    yield _version(server)
    yield _must_be(server, "log_bin", "ON", _log_bin_hint(server))
    yield _must_be(server, "binlog_format", "ROW", _setting(server, "binlog_format", "ROW"))
    metadata = server.variable("binlog_row_metadata") or "missing"
    hint = _setting(server, "binlog_row_metadata", "FULL")
    yield _finding("binlog_row_metadata", metadata, State.OK if metadata == "FULL" else State.PROBLEM, hint)
    image = server.variable("binlog_row_image")
    hint = _setting(server, "binlog_row_image", "FULL")
    yield _finding("binlog_row_image", image, State.OK if image in _WHOLE else State.WARNING, hint)
    number = server.variable("server_id")
    hint = _setting(server, "server_id", "1")
    yield _finding("server_id", number, State.PROBLEM if number == "0" else State.OK, hint)
    yield _gtid(server)
    yield _retention(server)


def find_in_grants(connection: Connection[Any]) -> Iterator[Finding]:
    """Yield whether the account has the privileges."""
    who = account(connection)
    grants = "\n".join(str(row[0]) for row in fetch(connection, "SHOW GRANTS"))
    for what, pattern in (("REPLICATION SLAVE", _REPLICATION), ("REPLICATION CLIENT", _STATUS)):
        given = pattern.search(grants) is not None
        state = State.OK if given else State.PROBLEM
        yield _finding(
            f"privilege_{what.lower().replace(' ', '_')}",
            "granted" if given else f"not granted to {who}",
            state,
            grant(who),
            what=f"privilege {what}",
        )


def find_in_tables(connection: Connection[Any], routes: Sequence[Route]) -> Iterator[Finding]:
    """Yield whether the tables and columns that the routes name exist."""
    columns, versioned = _read_columns(connection)
    without_rows = _read_tables_without_rows(connection)
    for route in routes:
        found = [name for name in selected_tables(route, columns) if name not in without_rows]
        if not found:
            yield _nothing_selected(connection, route, columns, without_rows)
            continue
        yield _found(route, _missing_columns(route, (columns[name] for name in found)))
    for name, period in versioned.items():
        is_selected = any(route.matches(*name) for route in routes)
        yield _logged_as_statements(name, period, State.PROBLEM if is_selected else State.WARNING)


def _read_columns(connection: Connection[Any]) -> tuple[dict[_Name, set[str]], dict[_Name, list[str]]]:
    """Return the columns of all tables, and the two period columns of those whose versions go by transaction ids."""
    columns: dict[_Name, set[str]] = {}
    versioned: dict[_Name, list[str]] = {}
    rows = fetch(
        connection,
        "SELECT TABLE_SCHEMA, TABLE_NAME, COLUMN_NAME,"
        " DATA_TYPE = 'bigint' AND GENERATION_EXPRESSION IN ('ROW START', 'ROW END')"
        " FROM information_schema.COLUMNS"
        " WHERE TABLE_SCHEMA NOT IN ('information_schema', 'performance_schema', 'mysql', 'sys')",
    )
    for schema, table, column, is_of_period in rows:
        name = str(schema), str(table)
        columns.setdefault(name, set()).add(str(column))
        if is_of_period:
            versioned.setdefault(name, []).append(str(column))
    return columns, versioned


def _tables_to_read(connection: Connection[Any], routes: Sequence[Route]) -> list[_Name]:
    """Return the tables of which a route takes reads."""
    taking = [route for route in routes if EventType.READ in route.events]
    if not taking:
        return []
    columns, _ = _read_columns(connection)
    without_rows = _read_tables_without_rows(connection)
    return sorted(
        {name for route in taking for name in selected_tables(route, columns)} - without_rows.keys()
    )


def _read_tables_without_rows(connection: Connection[Any]) -> dict[_Name, str]:
    """Return views and sequences, with what they are."""
    rows = fetch(
        connection,
        "SELECT TABLE_SCHEMA, TABLE_NAME, LOWER(TABLE_TYPE) FROM information_schema.TABLES"
        " WHERE TABLE_SCHEMA NOT IN ('information_schema', 'performance_schema', 'mysql', 'sys')"
        " AND TABLE_TYPE IN ('VIEW', 'SEQUENCE')",
    )
    return {(str(schema), str(table)): str(kind) for schema, table, kind in rows}


def _found(route: Route, missing: Sequence[str]) -> Finding:
    what = f"table {route.schema}.{route.table}"
    if not missing:
        return _finding("table", "found", what=what)
    text, hint = (
        f"has no column {', '.join(missing)}",
        f"Correct columns=, when= or key= of the route of {route.task}.",
    )
    return _finding("column_missing", text, State.PROBLEM, hint, what=what)


def _nothing_selected(
    connection: Connection[Any], route: Route, columns: Iterable[_Name], without_rows: Mapping[_Name, str]
) -> Finding:
    what = f"table {route.schema}.{route.table}"
    if kind := without_rows.get((route.schema, route.table)):
        hint = f"Name in the route of {route.task} the tables that hold the rows."
        text = f"is a {kind}: the log has no changes of it"
        return _finding("table_without_rows", text, State.WARNING, hint, what=what)
    known = ", ".join(sorted({schema for schema, _ in columns})) or "none"
    return _finding(
        "table_missing",
        "no such table that the account may read",
        State.WARNING if _is_glob(route) else State.PROBLEM,
        f"Correct the route of {route.task} (the schema is the database's name; there are: {known}), "
        f"or: GRANT SELECT ON {_grantable(route.schema)}.* TO {account(connection)};",
        what=what,
    )


def _logged_as_statements(name: _Name, period: Sequence[str], state: State) -> Finding:
    schema, table = name
    dropped = ", ".join(f"DROP COLUMN {_quoted(column)}" for column in period)
    place = f"{_quoted(schema)}.{_quoted(table)}"
    return _finding(
        "system_versioning",
        "has system versioning by transaction ids: MariaDB logs its changes as statements, without rows",
        state,
        "Let it go by time; this deletes its history:\n"
        "SET system_versioning_alter_history = KEEP;\n"
        f"ALTER TABLE {place} {dropped}, DROP PERIOD FOR SYSTEM_TIME, DROP SYSTEM VERSIONING;\n"
        f"ALTER TABLE {place} ADD SYSTEM VERSIONING;",
        what=f"table {schema}.{table}",
    )


def _version(server: Server) -> Finding:
    oldest = _OLDEST[server.kind]
    enough = server.version >= oldest
    hint = f"Upgrade to {'.'.join(map(str, oldest))} or later: older logs do not have the names of columns."
    return _finding("version", server.version_text, State.OK if enough else State.PROBLEM, hint)


def _must_be(server: Server, name: str, value: str, hint: str) -> Finding:
    found = server.variable(name)
    return _finding(name, found, State.OK if found == value else State.PROBLEM, hint)


def _log_bin_hint(server: Server) -> str:
    section = "mariadb" if server.is_mariadb else "mysqld"
    hints = {
        Host.AMAZON: "RDS: set the backup retention period to 1 day or more. Aurora: binlog_format = ROW in the DB "
        "cluster parameter group; then reboot.",
        Host.GOOGLE: "Turn point-in-time recovery on for the instance.",
        None: f"Write log_bin under [{section}] in the server's configuration, and restart it.",
    }
    return hints[server.host]


def _gtid(server: Server) -> Finding:
    if server.has_gtids:
        return _finding("gtids", "on", what="GTIDs")
    return _finding(
        "gtids",
        "off: after a failover to a replica the listener cannot continue where it stopped, and a task may start before "
        "its change can be read",
        State.WARNING,
        f"{_setting(server, 'enforce_gtid_consistency', 'ON')}\n"
        f"{_setting(server, 'gtid_mode', 'OFF_PERMISSIVE')}\n"
        f"{_setting(server, 'gtid_mode', 'ON_PERMISSIVE')}\n"
        f"When the listener has logged gtids_are_on: {_setting(server, 'gtid_mode', 'ON')}",
        what="GTIDs",
    )


def _retention(server: Server) -> Finding:
    if server.host is Host.AMAZON:  # it purges by itself, independent of the server's variables
        return _finding(
            "log_retention",
            "CALL mysql.rds_show_configuration; shows `binlog retention hours`. Without it the host purges the log as "
            "soon as it can: CALL mysql.rds_set_configuration('binlog retention hours', 168);",
            what="log retention",
        )
    seconds = server.retention
    if seconds is None:
        return _finding("log_retention", "until it is purged by hand", what="log retention")
    return _finding(
        "log_retention",
        f"{counted(seconds / 3600, 'hour')}: a listener stopped for longer misses changes",
        State.WARNING if seconds < _SHORT_RETENTION else State.OK,
        _setting(server, "binlog_expire_logs_seconds", "604800")
        if server.variable("binlog_expire_logs_seconds")
        else _setting(server, "expire_logs_days", "7"),
        what="log retention",
    )


def _missing_columns(route: Route, tables: Iterable[set[str]]) -> list[str]:
    wanted = {*(route.columns or ()), *getattr(route.when, "columns", ()), *getattr(route.key, "columns", ())}
    for columns in tables:
        wanted -= columns
    return sorted(wanted)


def _is_glob(route: Route) -> bool:
    """Return whether the route may select tables that do not exist yet."""
    return any(character in name for name in (route.schema, route.table) for character in "*?[")


_SETTINGS: Final = {
    Host.AMAZON: "{name} = {value} in the DB parameter group (Aurora: in the DB cluster parameter group); reboot if it "
    "is static",
    Host.GOOGLE: "the database flag {name} = {value} of the instance",
}


def _setting(server: Server, name: str, value: str) -> str:
    if server.host is not None:
        return _SETTINGS[server.host].format(name=name, value=value)
    return setting(name, value, mariadb=server.is_mariadb)


def _finding(
    code: str, found: str, state: State = State.OK, hint: str = "", *, what: str | None = None
) -> Finding:
    """Return the finding; `what` is its code, unless it is given."""
    return Finding(
        what=what or code,
        code=code,
        found=found or "not known",
        state=state,
        hint="" if state is State.OK else hint,
    )


def _grantable(schema: str) -> str:
    """Return the schema as GRANT takes it; for a glob all schemas, since GRANT has other wildcards."""
    return "*" if any(character in schema for character in "*?[") else _quoted(schema)


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
