"""MySQL's and MariaDB's binlog as a Monitor: a lock, and the connection of a replica."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from fnmatch import fnmatchcase
from functools import partial
from time import monotonic, time
from typing import Any, Final

import structlog

from cdc_tasks.routing.router import Route
from listener.core.backfill import ChunkRequest
from listener.core.findings import raise_problems
from listener.core.last_change import hold_back
from listener.core.source import IDLE_INTERVAL, Batch, Saved, SourceLostError
from listener.core.visibility import VisibilityWait
from listener.core.wakeup import Wakeup
from listener.mysql.backfill.window import Window
from listener.mysql.charsets import Charsets
from listener.mysql.check import find_in_server, find_in_tables
from listener.mysql.client.connection import Connection, Session, connect
from listener.mysql.client.server import Server, current_position, read_server, replicas
from listener.mysql.client.single_reader_lock import ListenerLock
from listener.mysql.codec.change import BinlogChange
from listener.mysql.codec.decoder import Decoder
from listener.mysql.errors import HIDDEN_COMMIT, ServerIdTakenError
from listener.mysql.log.position import BinlogPosition
from listener.mysql.log_decoder import log_decoder
from listener.mysql.start.start_position import starting_position
from listener.mysql.stream import BinlogStream, StreamPlace, replica_uuid
from listener.mysql.tables.catalogue import Definitions
from listener.mysql.visibility import visibility_of

__all__ = ["BinlogMonitor", "derived_server_id"]

log = structlog.get_logger()

_MAX_BYTES: Final = 1_000_000  # of events in a batch: wide rows make smaller batches
_TICK: Final = IDLE_INTERVAL
_WARN_EVERY: Final = 60.0  # seconds
_STANDBY_EVERY: Final = 1.0  # seconds between two attempts of a standby to get the lock


class BinlogMonitor:
    """Reads one server's changes as a replica; fulfils `listener.core.source.Monitor`.

    The server keeps its log for a configured time (binlog_expire_logs_seconds), independent of replicas:
    there is nothing to acknowledge.
    """

    source: str  # mysql or mariadb, not one server: with GTIDs a checkpoint is valid on all of a group

    def __init__(
        self,
        database_url: str,
        *,
        name: str,
        routes: Sequence[Route],
        server_id: int | None = None,
        batch_size: int = 1000,
        from_start: bool = False,
        accept_gap: bool = False,
    ) -> None:
        """`name` is CDC_NAME. `server_id` None: derived from it. `batch_size` is in changes.

        `from_start`: without a checkpoint, read the oldest log first. `accept_gap`: as on the command line.
        """
        self._database_url = database_url
        self._name = name
        self._routes = routes
        self._server_id = server_id or derived_server_id(name)
        self._batch_size = batch_size
        self._from_start = from_start
        self._accept_gap = accept_gap
        self.has_accepted_gap = False  # at its start
        self.is_standby = False
        self._wakeup = Wakeup()
        self._resources = ExitStack()
        self._warned_at = float("-inf")
        self._server: Server
        self._session: Session  # for queries while the log is read
        self._charsets: Charsets
        self._definitions: Definitions | None
        self._lock: ListenerLock
        self._current: BinlogPosition  # the end of the log at the start
        self._stream: BinlogStream
        self._events: Iterator[bytes | None]
        self._decoder: Decoder
        self._window: Window
        self._place: StreamPlace

    @property
    def silence(self) -> float:
        """See `Monitor.silence`."""
        stream = vars(self).get("_stream")
        return 0.0 if stream is None else stream.silence

    def open(
        self,
        *,
        saved: Saved | None,  # noqa: ARG002 - the log is the server's own: there is no slot that could be missing
        again: Callable[[], Saved | None] | None = None,  # noqa: ARG002
    ) -> None:
        """Become the only reader; see `Monitor.open`."""
        self.close()
        with ExitStack() as stack:
            with closing(connect(self._database_url)) as connection:
                self._server = read_server(connection)
                raise_problems([*find_in_server(self._server), *find_in_tables(connection, self._routes)])
                self._session = Session(partial(connect, self._database_url))
                stack.callback(self._session.close)
                self._charsets = Charsets(self._session)
            self.source = self._server.kind
            self._lock = ListenerLock(self._database_url, self._name)
            stack.callback(self._lock.close)
            if not self._wait_for_lock():
                return
            with closing(connect(self._database_url)) as connection:
                self._current = current_position(connection, self._server)
            self._definitions = self._look_up_tables()
            self._resources = stack.pop_all()

    def batches(self, after: str | None) -> Iterator[Batch]:
        """Yield the changes after `after`; see `Monitor.batches`."""
        if self._wakeup.is_set:
            return
        position = str(self._start(after))
        # Immediately, so reading begins here again after a crash, and not after later commits.
        yield Batch([], position)
        stream, decoder, window = self._stream, self._decoder, self._window
        is_ahead = False  # the broker may not have all of the last batch yet: the next one comes at once
        visibility = visibility_of(self._session, self._server, lambda: decoder.committed_by_name)
        held: list[BinlogChange] = []  # read, but left for the next batch: see `hold_back`
        while not self._wakeup.is_set:
            changes = held
            with self._yielding_to_successor():
                is_certain = self._read(changes)
            if not is_certain:
                return  # stopped before it was known whether they are rolled back: the next start reads them again
            self._lock.check()
            id_head = decoder.progress.id_head
            held = [] if id_head is None else hold_back(changes, id_head)
            if changes and not visibility.shows(changes):
                yield from self._until_visible(partial(visibility.shows, changes), position, changes[-1])
                if self._wakeup.is_set:
                    return
            chunk = window.take(changes, self._place.position) if window.is_busy else None
            if changes:
                self._watch_retention(changes[-1])
            elif not is_ahead and chunk is None:
                stream.wait(_TICK, window.done)
            is_ahead = bool(changes) or chunk is not None
            decoder.progress.hand_over(held[0].ordinal if held else None)
            as_of = changes[-1].committed_at if changes else None
            position = str(decoder.progress.position)
            yield Batch(changes, position, as_of, pipelined=is_ahead, chunk=chunk)

    def acknowledge(self, position: str) -> None:
        """Nothing to do: the server does not keep its log for us."""

    def read_chunk(self, request: ChunkRequest, /) -> None:
        """Start to read rows for a backfill; see `Monitor.read_chunk`."""
        self._window.start(request, self._decoder)

    def stop(self) -> None:
        """Make `open` and `batches` return soon."""
        self._wakeup.set()

    def close(self) -> None:
        """Release the lock and close the connections; safe to call twice."""
        self._resources.close()

    def _wait_for_lock(self) -> bool:
        try:
            while not self._lock.acquire():
                if not self.is_standby:
                    reason = "Another listener with this CDC_NAME is running."
                    log.info("standby", name=self._name, reason=reason)
                    self.is_standby = True
                if self._wakeup.wait(_STANDBY_EVERY):
                    return False
        finally:
            self.is_standby = False
        return True

    def _look_up_tables(self) -> Definitions | None:
        """Return the table data found only in MariaDB's catalogue; None for MySQL, whose log has everything."""
        if not self._server.is_mariadb:
            return None
        definitions = Definitions(self._session)
        definitions.keep(self._routes)
        return definitions

    def _start(self, after: str | None) -> BinlogPosition:
        """Connect as a replica, and return the place where reading begins."""
        checkpoint = BinlogPosition.parse(after) if after else None
        with closing(connect(self._database_url)) as connection:
            start = starting_position(
                connection,
                self._server,
                url=self._database_url,
                after=checkpoint,
                current=self._current,
                from_start=self._from_start,
                accept_gap=self._accept_gap,
            )
            self._check_server_id(connection)
        self.has_accepted_gap = checkpoint is not None and start.epoch > checkpoint.epoch
        self._decoder = log_decoder(
            self._server,
            self._routes,
            self._charsets,
            definitions=self._definitions,
            after=start,
            accepts_gap_until=self._current if self._accept_gap else None,
            selects=partial(_selects, self._routes),
        )
        self._resources.callback(self._decoder.close)
        self._accept_gap = False  # it applies to this gap, not to a later one
        self._stream = BinlogStream(
            self._database_url, server_id=self._server_id, name=self._name, wakeup=self._wakeup
        )
        self._resources.callback(self._stream.close)
        self._window = Window(partial(connect, self._database_url), self._server)
        self._resources.callback(self._window.close)
        self._place = StreamPlace(start if start.is_place_on(self._server.name) else None)
        self._stream.start(self._server, start)
        self._events = self._stream.events()
        log.info("streaming", position=str(start), server=self._server.version_text)
        return start

    def _check_server_id(self, connection: Connection[Any]) -> None:
        mine = str(self._server_id)
        if mine == self._server.variable("server_id"):
            raise ServerIdTakenError.by(self._server_id, "the server itself")
        other = replicas(connection, self._server).get(self._server_id)
        if other and other != replica_uuid(self._name):
            raise ServerIdTakenError.by(self._server_id, f"the replica {other}")

    def _read(self, changes: list[BinlogChange]) -> bool:
        """Read what the server has sent, up to a batch; return whether the changes may be published."""
        decoder = self._decoder
        held = len(changes)
        decode, full, size = decoder.decode, self._batch_size + held, 0
        deadline = monotonic() + _TICK
        # A chunk waits for the end of the transaction in which the last batch ended.
        ends_with_transaction = decoder.is_within_transaction and self._window.is_due(self._place.position)
        events, outer = self._events, None
        while len(changes) < full and size < _MAX_BYTES:
            if decoder.inner is None:
                event = next(events)
                if event is None:
                    break
                outer = event
            else:
                event = next(decoder.inner, None)
                if event is None:
                    decoder.leave_inner()
                    continue
            size += len(event)
            decode(event, changes)
            if ends_with_transaction and not decoder.is_within_transaction:
                break
            if len(changes) <= held and monotonic() > deadline:
                break  # much log without changes for us
        if outer is not None:
            self._place.passed(outer, decoder.progress.file)
        return not (changes and decoder.needs_end) or self._read_to_the_end(changes)

    def _until_visible(
        self, is_visible: Callable[[], bool], position: str, last: BinlogChange
    ) -> Iterator[Batch]:
        """Yield batches without changes until sessions see what was read, or `stop`; `position` is before it."""
        wait = VisibilityWait(self._wakeup, hint=HIDDEN_COMMIT)
        while not (wait.until(is_visible, last.position, seconds=_TICK) or self._wakeup.is_set):
            self._lock.check()
            yield Batch([], position, commit_wait=wait.current)

    def _watch_retention(self, newest: BinlogChange) -> None:
        """Warn if reading is so far behind that the server may soon purge the next log."""
        kept, now = self._server.retention, monotonic()
        if kept is None or now - self._warned_at < _WARN_EVERY:
            return
        age = time() - newest.commit.committed / 1_000_000
        if age > kept / 2:
            self._warned_at = now
            log.warning("log_soon_purged", age_seconds=int(age), kept_seconds=kept, position=newest.position)

    def _read_to_the_end(self, changes: list[BinlogChange]) -> bool:
        """Buffer the rest of a transaction, until its outcome is known; return False if stopped before that."""
        while not self._wakeup.is_set:
            event = next(self._events)
            if event is None:
                self._stream.wait(_TICK)
            elif self._decoder.buffer(event, changes):
                self._place.passed(event, self._decoder.progress.file)
                return True
        return False

    @contextmanager
    def _yielding_to_successor(self) -> Iterator[None]:
        """Raise SourceLostError if another replica with our server_id is our own successor, which has the lock now.

        A server sends the log to the replica that came last with a server_id. Without the lock this listener becomes a
        standby. With it, the other one is not a listener of this name: the error ends this one, so the two do not
        take the log from each other forever.
        """
        try:
            yield
        except ServerIdTakenError as error:
            if not self._lock.is_mine():
                raise SourceLostError(error.message, code=error.code) from error
            raise


def _selects(routes: Sequence[Route], schema: str, table: str | None) -> bool:
    """Return whether a route selects the table; None: any table of the schema."""
    if table is None:
        return any(fnmatchcase(schema, route.schema) for route in routes)
    return any(route.matches(schema, table) for route in routes)


def derived_server_id(name: str) -> int:
    """Return a server_id of 31 bits that depends only on CDC_NAME; it is large, as most replicas have small ones."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big") >> 1 | 1 << 30
