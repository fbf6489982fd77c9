"""The listener's state according to MySQL or MariaDB."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

from listener.core.source_status import Reader, SourceStatus
from listener.mysql.client.connection import Connection, connect, fetch_value
from listener.mysql.client.server import LogFile, Server, current_position, log_files, read_server
from listener.mysql.client.single_reader_lock import lock_name
from listener.mysql.log.position import BinlogPosition

__all__ = ["BinlogGauge", "read_mysql_status"]


def read_mysql_status(url: str, name: str, checkpoint: str | None) -> SourceStatus:
    """Return the state of the listener `name` (CDC_NAME) on the server. Raise SourceError, SourceLostError."""
    with closing(connect(url)) as connection:
        return _read(connection, name, checkpoint)


class BinlogGauge:
    """Reads the same in one open session."""

    def __init__(self, url: str, name: str) -> None:
        """`name` is CDC_NAME."""
        self._url = url
        self._name = name
        self._connection: Connection[Any] | None = None

    def read(self, checkpoint: str | None) -> SourceStatus:
        """Return the positions. Raise SourceError, SourceLostError; then the next read reconnects."""
        try:
            return _read(self._connection or self._connect(), self._name, checkpoint)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the session; the next read opens another one."""
        connection, self._connection = self._connection, None
        if connection is not None and connection.open:
            connection.close()

    def _connect(self) -> Connection[Any]:
        self._connection = connect(self._url)
        return self._connection


def _read(connection: Connection[Any], name: str, checkpoint: str | None) -> SourceStatus:
    server = read_server(connection)
    current = current_position(connection, server)
    reader = fetch_value(connection, "SELECT IS_USED_LOCK(%s)", [lock_name(name)])
    files = log_files(connection)
    lag = (
        None
        if checkpoint is None
        else _bytes_between(server, BinlogPosition.parse(checkpoint), current, files)
    )
    return SourceStatus(
        reader=_reader(reader, checkpoint),
        detail=f"lock {lock_name(name)}, held by {f'session {reader}' if reader else 'no session'}",
        current=f"{current.file}:{current.offset}",
        acknowledged=None,  # the server keeps its log for a configured time
        lag_bytes=lag,
        retained_bytes=lag,
        safe_bytes=None,
    )


def _reader(session: int | None, checkpoint: str | None) -> Reader:
    if session:
        return Reader.RUNNING
    return Reader.NEVER_STARTED if checkpoint is None else Reader.NONE


def _bytes_between(
    server: Server, after: BinlogPosition, current: BinlogPosition, files: Sequence[LogFile]
) -> int | None:
    """Return how much log lies between; None if the checkpoint is of another server's log."""
    if after.server != server.name or after.file_number > current.file_number:
        return None
    numbered = [(BinlogPosition(file=file.name, offset=4).file_number, file.size) for file in files]
    between = sum(size for number, size in numbered if after.file_number <= number < current.file_number)
    return max(0, between - after.offset + current.offset)
