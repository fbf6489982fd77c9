"""The server's own log as a history: for replays without a journal.

The server keeps its log for days, independent of replicas. A replay reads it with its own connection and decoder,
as mysqlbinlog does: for the server it is not a replica. A table is as described at that point of the log, before an
ALTER or after it. Data found only in MariaDB's catalogue (`tables/catalogue.py`) is current.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from cdc_tasks.routing.router import Route
from listener.core.history import Kept, Part, Wanted
from listener.core.source import GapError
from listener.mysql.charsets import Charsets
from listener.mysql.client.connection import Connection, Session, connect, translated
from listener.mysql.client.replication import events_as_tool
from listener.mysql.client.server import Server, current_position, gtid_position, log_files, read_server
from listener.mysql.codec.gtid_event import mariadb_gtid
from listener.mysql.history.excerpt import Excerpt, Window
from listener.mysql.history.file_times import FileTimes
from listener.mysql.log.gtid import MariaDBGTIDs
from listener.mysql.log.position import BinlogPosition
from listener.mysql.log_decoder import log_decoder
from listener.mysql.start.log_identity import gtids_before, log_created_at, with_checksums
from listener.mysql.tables.catalogue import Definitions

__all__ = ["BinlogHistory"]

_FIRST: Final = 4  # the offset of a file's first event
_TIMEOUT: Final = 60  # seconds
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_EVER: Final = datetime(9999, 1, 1, tzinfo=UTC)
_MARIADB_GTID: Final = 162


class BinlogHistory:
    """The binlog of one server; fulfils `listener.core.history.History`. Places are those of `BinlogPosition`."""

    name = "the binlog"
    kind = "binlog"

    def __init__(
        self,
        database_url: str,
        routes: Sequence[Route],
        *,
        checkpoint: Callable[[], BinlogPosition | None] = lambda: None,
    ) -> None:
        """`routes` are those to fire. `checkpoint` is the listener's."""
        self._url = database_url
        self._routes = routes
        self._checkpoint = checkpoint
        self._resources = ExitStack()
        self._reading: tuple[Wanted, str, Excerpt] | None = None  # what is read, and up to which place

    def kept(self) -> Kept:
        """See `History.kept`: the oldest file determines the start."""
        with closing(connect(self._url)) as connection:
            server = read_server(connection)
            end = current_position(connection, server, with_gtids=False)
            times = self._times(connection)
        return Kept(
            id=_id_of(server),
            since=_EPOCH + timedelta(seconds=times.oldest),
            end=f"{end.file}:{end.offset}",
        )

    def read(self, wanted: Wanted, start: str, limit: int) -> Part:
        """See `History.read`."""
        reading = self._reading
        try:
            if reading is None or reading[:2] != (wanted, start):
                self.close()
                excerpt = self._open(wanted, start)
            else:
                excerpt = reading[2]
            changes, is_end = excerpt.read(wanted.selection, limit)
        except BaseException:
            self.close()
            raise
        self._reading = wanted, excerpt.place, excerpt
        return Part(changes, excerpt.place, is_end)

    def close(self) -> None:
        """See `History.close`."""
        self._reading = None
        self._resources.close()

    def _times(self, connection: Connection[Any]) -> FileTimes:
        return FileTimes(log_files(connection), partial(log_created_at, self._url))

    def _open(self, wanted: Wanted, start: str) -> Excerpt:
        """Connect, and request the log from `start` on."""
        with closing(connect(self._url)) as connection:
            server = read_server(connection)
            if _id_of(server) != wanted.id:
                raise GapError(
                    "The replay began with the log of another server.",
                    hint="Request the replay again, or cancel it: python -m listener replays cancel ID",
                    code="binlog_other",
                )
            times = self._times(connection)
            window = _window(wanted, times)
            after = (
                BinlogPosition.parse(start)
                if start
                else self._beginning(connection, server, times.first(window.since / 1_000_000))
            )
        return self._excerpt(server, after, window, accepts_gap=wanted.accepts_gap)

    def _excerpt(
        self, server: Server, after: BinlogPosition, window: Window, *, accepts_gap: bool
    ) -> Excerpt:
        session = Session(partial(connect, self._url))
        self._resources.callback(session.close)
        decoder = log_decoder(
            server,
            self._routes,
            Charsets(session),
            definitions=Definitions(session) if server.is_mariadb else None,
            after=after,
            accepts_gap_until=window.end if accepts_gap else None,
        )
        connection = connect(self._url, read_timeout=_TIMEOUT)
        self._resources.callback(lambda: connection.close() if connection.open else None)
        with translated(connection):
            events = with_checksums(events_as_tool(connection, *after.start))
        excerpt = Excerpt(connection, events, decoder, window)
        self._resources.callback(excerpt.close)
        return excerpt

    def _beginning(self, connection: Connection[Any], server: Server, file: str) -> BinlogPosition:
        """Return the start of a file, with all that was committed before it."""
        gtids: str | None = None
        if server.is_mariadb:
            gtids = str(MariaDBGTIDs(gtid_position(connection, file, _FIRST)))
        elif server.has_gtids:
            gtids = str(gtids_before(self._url, file))
        saved = self._checkpoint()
        epoch = 0 if saved is None else saved.epoch
        if epoch and server.is_mariadb and saved is not None:
            epoch = max(0, epoch - self._epochs_since(file, MariaDBGTIDs(gtids or ""), saved))
        return BinlogPosition(file=file, offset=_FIRST, server=server.name, gtids=gtids, epoch=epoch)

    def _epochs_since(self, file: str, before: MariaDBGTIDs, saved: BinlogPosition) -> int:
        """Return how often MariaDB's numbers have begun again between the start of a file and the checkpoint."""
        epochs, done = 0, MariaDBGTIDs(saved.done or "")
        with closing(connect(self._url, read_timeout=_TIMEOUT)) as connection, translated(connection):
            for event in events_as_tool(connection, file, _FIRST):
                if event[4] != _MARIADB_GTID:
                    continue
                if before == done:
                    break
                gtid, _, _ = mariadb_gtid(event)
                epochs += not before.ascends_to(gtid)
                before.add(gtid)
        return epochs


def _id_of(server: Server) -> str:
    return f"{server.kind}:{server.name}"


def _window(wanted: Wanted, times: FileTimes) -> Window:
    selection = wanted.selection
    since, until = selection.since or _EPOCH, selection.until or _EVER
    file, _, offset = wanted.end.rpartition(":")
    end = BinlogPosition(file=file, offset=int(offset))
    behind = times.behind(until.timestamp())
    if behind is not None:
        end = min(end, BinlogPosition(file=behind, offset=_FIRST))
    return Window(since=_micros(since), until=_micros(until), end=end)


def _micros(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1)
