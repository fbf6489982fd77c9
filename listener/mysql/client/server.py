"""The server's identity, and the extent of its binlog."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

from listener.core.source import SourceError
from listener.mysql.client.connection import Connection, fetch, fetch_value
from listener.mysql.errors import PermissionDeniedError
from listener.mysql.log.gtid import MariaDBGTIDs, MySQLGTIDs
from listener.mysql.log.position import BinlogPosition

__all__ = [
    "Host",
    "LogFile",
    "Server",
    "current_position",
    "gtid_position",
    "log_files",
    "prepared_names",
    "read_server",
    "replicas",
    "start_of",
]


@dataclass(frozen=True, slots=True)
class LogFile:
    """One file of the binlog."""

    name: str
    size: int  # bytes


class Host(StrEnum):
    """A managed host without SET PERSIST and SET GLOBAL."""

    AMAZON = "Amazon RDS or Aurora"
    GOOGLE = "Google Cloud SQL"


@dataclass(frozen=True, kw_only=True)
class Server:
    """The server's variables; names are in lower case, values are text."""

    variables: dict[str, str]

    @property
    def version_text(self) -> str:
        return self.variables["version"]

    @property
    def is_mariadb(self) -> bool:
        return "mariadb" in self.version_text.lower() or "mariadb" in self.variables.get(
            "version_comment", ""
        )

    @cached_property
    def version(self) -> tuple[int, ...]:
        found = re.match(r"(?:5\.5\.5-)?(\d+)\.(\d+)\.(\d+)", self.version_text)
        return tuple(map(int, found.groups())) if found else (0, 0, 0)

    @property
    def name(self) -> str:
        """The server's own id: its log files are meaningless on another server."""
        return self.variables["server_id"] if self.is_mariadb else self.variables["server_uuid"]

    @property
    def has_gtids(self) -> bool:
        """Whether transactions have GTIDs; on MariaDB they always have."""
        return self.is_mariadb or self.variables.get("gtid_mode", "OFF").upper() in {"ON", "ON_PERMISSIVE"}

    @property
    def kind(self) -> str:
        """`mariadb` or `mysql`."""
        return "mariadb" if self.is_mariadb else "mysql"

    @property
    def retention(self) -> int | None:
        """How many seconds the server keeps its log; None if an operator purges it."""
        seconds = int(float(self.variable("binlog_expire_logs_seconds") or 0))
        seconds = seconds or int(float(self.variable("expire_logs_days") or 0) * 86400)
        return seconds if seconds and self.variable("binlog_expire_logs_auto_purge") != "OFF" else None

    @property
    def host(self) -> Host | None:
        """The managed host of the server; None if it is unknown."""
        if "aurora_version" in self.variables or self.variable("basedir").startswith("/rdsdbbin/"):
            return Host.AMAZON
        return Host.GOOGLE if self.version_text.endswith("-google") else None

    def variable(self, name: str) -> str:
        """Return a variable's value, empty if the server does not have the variable."""
        return self.variables.get(name, "")


_WANTED = (
    *("version", "version_comment", "server_id", "server_uuid", "log_bin", "binlog_format"),
    *(
        "binlog_row_image",
        "binlog_row_metadata",
        "gtid_mode",
        "gtid_executed",
        "gtid_purged",
        "gtid_binlog_pos",
    ),
    *("binlog_expire_logs_seconds", "expire_logs_days", "binlog_expire_logs_auto_purge", "log_bin_basename"),
    *("require_secure_transport", "have_ssl", "max_allowed_packet", "binlog_row_value_options"),
    *("binlog_transaction_compression", "log_bin_compress", "gtid_domain_id", "lower_case_table_names"),
    *("read_only", "log_replica_updates", "log_slave_updates", "mysql56_temporal_format"),
    *("aurora_version", "basedir"),  # of a managed host
)


def read_server(connection: Connection[Any]) -> Server:
    """Return the server's variables. Raise SourceError, SourceLostError."""
    names = ", ".join(f"'{name}'" for name in _WANTED)
    rows = fetch(connection, f"SHOW GLOBAL VARIABLES WHERE Variable_name IN ({names})")
    return Server(variables={name.lower(): _text(value) for name, value in rows})


def current_position(
    connection: Connection[Any], server: Server, *, with_gtids: bool = True
) -> BinlogPosition:
    """Return the end of the log. Raise SourceError if the server writes none.

    `with_gtids`: MariaDB has to read a file of its log to find them.
    """
    statement = "SHOW BINARY LOG STATUS"
    if server.is_mariadb or server.version < (8, 2, 0):
        statement = "SHOW MASTER STATUS"
    rows = fetch(connection, statement)
    if not rows:
        raise SourceError(
            "The server writes no binlog.",
            hint="Start the server with log_bin and binlog_format=ROW.",
            code="log_bin",
        )
    file, offset = _text(rows[0][0]), int(rows[0][1])
    gtids: str | None = None
    if not with_gtids:
        pass
    elif server.is_mariadb:
        # Of exactly this position, not the server's newest: a transaction may have been committed since.
        gtids = gtid_position(connection, file, offset)
    elif server.has_gtids:
        gtids = str(MySQLGTIDs(_text(rows[0][4])))
    return BinlogPosition(file=file, offset=offset, server=server.name, gtids=gtids)


def log_files(connection: Connection[Any]) -> list[LogFile]:
    """Return the files that the server still has, oldest first."""
    return [LogFile(_text(row[0]), int(row[1])) for row in fetch(connection, "SHOW BINARY LOGS")]


def start_of(connection: Connection[Any], server: Server) -> BinlogPosition:
    """Return the beginning of the oldest file that the server still has."""
    files = log_files(connection)
    if not files:
        return current_position(connection, server)
    oldest = files[0]
    gtids: str | None = None
    if server.is_mariadb:
        gtids = str(MariaDBGTIDs(gtid_position(connection, oldest.name, 4)))
    elif server.has_gtids:
        # Read again: the server may have purged more while a standby waited.
        gtids = str(MySQLGTIDs(_text(fetch_value(connection, "SELECT @@global.gtid_purged"))))
    return BinlogPosition(file=oldest.name, offset=4, server=server.name, gtids=gtids)


def gtid_position(connection: Connection[Any], file: str, offset: int) -> str:
    """Return MariaDB's GTID position at a place of its log."""
    return _text(fetch_value(connection, "SELECT BINLOG_GTID_POS(%s, %s)", [file, offset]))


def replicas(connection: Connection[Any], server: Server) -> dict[int, str]:
    """Return the uuids of the connected replicas, by their server_id; on MariaDB they are empty.

    The result is empty if the account may not see them (MariaDB).
    """
    old = server.is_mariadb or server.version < (8, 0, 22)
    try:
        rows = fetch(connection, "SHOW SLAVE HOSTS" if old else "SHOW REPLICAS")
    except PermissionDeniedError:
        return {}
    return {int(row[0]): "" if server.is_mariadb else str(row[-1]) for row in rows}


def prepared_names(rows: Iterable[tuple[Any, ...]]) -> set[str]:
    """Return the names of the rows of XA RECOVER, as the log has them: X'616263',X'',1."""
    names = set()
    for kind, first, second, data in rows:
        name = data if isinstance(data, bytes) else str(data).encode("latin1")
        names.add(f"X'{name[:first].hex()}',X'{name[first : first + second].hex()}',{kind}")
    return names


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode()
    return "" if value is None else str(value)
