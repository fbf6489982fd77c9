"""PostgreSQL's write-ahead log as a Monitor: one slot, one publication, one reader."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Final

import structlog

from cdc_tasks.routing.router import Route
from listener.core.source import Batch, GapError, Saved, SourceError, SourceLostError
from listener.core.wakeup import Wakeup
from listener.postgres.client.connection import (
    Connection,
    connect,
    connect_replication,
    fetch_value,
    is_shutting_down,
    log_codec,
    translated,
)
from listener.postgres.client.diagnosis import explain
from listener.postgres.client.errors import SlotInUseError, sqlstate_of
from listener.postgres.client.slot import Slot, check_slot, create_slot, drop_slot, read_slot
from listener.postgres.client.stream import ReplicationStream
from listener.postgres.client.timeline import ServerLog, Start, identify, refuse_standby, resume
from listener.postgres.codec.change import WALChange
from listener.postgres.codec.decoder import Begin, Commit, Decoder, UndescribedTableError, WALPosition
from listener.postgres.gaps import find_gap, published_lsn
from listener.postgres.hints import STUCK, UPDATE
from listener.postgres.log.acknowledgements import Acknowledgements
from listener.postgres.log.position import Place, Published, format_lsn, parse_lsn
from listener.postgres.plugins import PluginName, open_plugin
from listener.postgres.tables.notes import Notes, format_notes, parse_notes
from listener.postgres.tables.sync import Prepared, TableKeeper, TableRenamedError
from listener.postgres.tables.watch import TableWatch

__all__ = ["PostgresWALMonitor"]

log = structlog.get_logger()

_MAX_BYTES = 1_000_000  # of messages in a batch: wide rows come in smaller batches
_TICK = 0.25  # seconds between two looks at what is due while nothing comes
_ACKNOWLEDGE_EVERY = 0.5  # seconds
_IDLE_EVERY = 1.0  # seconds between two acknowledgements of log that does not concern us
_LOOKED_EVERY = 2.0  # seconds between two notes of when the tables were looked at, at least …
_LOOKED_RATE = 50_000  # … and no more bytes a second than these: notes of thousands of tables are long
_STANDBY_EVERY = 1.0  # seconds between two looks at whether the other listener is gone

_SENDER_TIMEOUT = "SELECT setting::int / 1000.0 FROM pg_settings WHERE name = 'wal_sender_timeout'"


# What a race leaves behind whose winner is another listener, with the same publication: look again.
_RACES: Final = frozenset({"23505", "42710", "XX000"})  # it is there already; tuple concurrently updated


_DECODER: Final = "decoder"  # the notes' field for what the decoder wants to know at the next start


class PostgresWALMonitor:
    """Reads one database's changes through a logical replication slot; fulfils `listener.core.source.Monitor`."""

    source: str  # the cluster's system identifier, in hexadecimal; known once open

    def __init__(
        self,
        database_url: str,
        *,
        slot: str,
        publication: str,
        routes: Sequence[Route],
        plugin: PluginName = "pgoutput",
        batch_size: int = 1000,
        failover: bool = False,
        replay_window: float = 0.0,
        accept_gap: bool = False,
        column_lists: bool = False,
    ) -> None:
        """`batch_size` in changes; `failover`, `accept_gap`, `column_lists` as settings and command line have them."""
        self._database_url = database_url
        self._slot = slot
        self._publication = publication
        self._routes = routes
        self._plugin = plugin
        self._batch_size = batch_size
        self._failover = failover
        self._replay_window = replay_window
        self._accept_gap = accept_gap
        self._keeper = TableKeeper(
            publication=publication if plugin == "pgoutput" else None,
            routes=routes,
            column_lists=column_lists,
        )
        self._noted: str | None = None  # what the broker holds of the notes, or will with the next batch
        self._compared: Notes | None = None  # with what is noted
        self._looked = 0  # what is noted of that
        self._note_at = 0.0  # not before is it noted again for that alone
        self._said: str | None = None  # what the decoder wants to know at the next start
        self._watch: TableWatch
        self._prepared = Prepared(Notes(), 0)
        self._wakeup = Wakeup()
        self._acknowledgements = Acknowledgements(replay_window=replay_window)
        self._in_transaction = False
        self._is_ahead = False  # the last batch may not be held by the broker yet
        self._confirmed = 0  # what the server had been told when we came
        self._told = 0  # where it may stand because of what we told the server
        self._is_new = False  # there was no slot before us
        self._gap_is_accepted = False  # and the next batch says so
        self._last = Published()  # the last change, of this run or a former one
        self._acknowledged_at = 0.0
        self._read_up_to = 0  # the end of the last transaction, or of the log that did not concern us
        self._idle_at = 0.0
        self._stream: ReplicationStream
        self._decoder: Decoder
        self._log: ServerLog
        self._open_things = ExitStack()

    def open(self, *, saved: Saved | None, again: Callable[[], Saved | None] | None = None) -> None:
        """Become the only reader of the slot; see `Monitor.open`."""
        said = False
        while not self._wakeup.is_set:
            try:
                self._open(again if said and again else lambda: saved)
            except SlotInUseError as error:
                if not said:
                    log.info("standby", slot=self._slot, reason=error.message)
                    said = True
                self._wakeup.wait(_STANDBY_EVERY)
            else:
                return

    def batches(self, after: str | None) -> Iterator[Batch]:
        """Yield what lies beyond `after`; see `Monitor.batches`."""
        if after and self._gap_is_accepted:
            after = self._next_generation(after)
        self._gap_is_accepted = False
        try:
            yield from self._batches(after)
            if self._stream.has_answered:
                yield from self._told_already()
        except SourceLostError:
            yield from self._told_already()
            raise
        except GapError as gap:
            if after is None or not self._accept_gap:
                raise
            log.error("gap_accepted", gap=gap.message)  # noqa: TRY400 - a person needs no traceback
            after = self._next_generation(after)
            yield Batch((), after)  # held before anything is read in its terms
            self.open(saved=Saved(after))  # all again that was left out as published: it was another log's
            yield from self._batches(after)

    def _told_already(self) -> Iterator[Batch]:
        """Yield the place that a server that shuts down may know before the broker does: see ReplicationStream."""
        if not (self._stream.has_begun or self._decoder.is_expecting):
            place = max(self._stream.server_position, self._confirmed)
            yield Batch((), self._named(WALPosition.before(place)))

    def _batches(self, after: str | None) -> Iterator[Batch]:
        start = self._resume(after) if after else Start()
        self._warn_of_loss(after, start)
        self._last = start.last
        self._decoder.start(start.last, self._log.eras(start.generation), is_expected=start.is_expected)
        # Not from the checkpoint on: where the log that did not concern us was read up to, other changes may stand
        # after a restore.
        position = WALPosition.before(self._confirmed)
        if not start.is_expected:
            # From the start on: one that is missing tells a lost broker.
            yield Batch((), self._named(position), notes=self._news())
        while not self._wakeup.is_set:
            self._accept_gap &= self._decoder.is_expecting  # the one that was meant, and none later
            changes: list[WALChange] = []
            try:
                with self._explained(streams=True):
                    goes_on = self._read(changes)
            except TableRenamedError:
                if not self._decoder.is_expecting:
                    # The name is noted; what was read in front of it comes again.
                    yield Batch((), self._named(position), notes=self._news())
                raise
            self._decoder.confirm(changes)
            if changes:
                position = self._position_of(changes[-1])
                self._last = _published(changes[-1])
                self._is_ahead = goes_on
                named, as_of = self._named(position), changes[-1].committed_at
                yield Batch(changes, named, as_of, pipelined=goes_on, notes=self._news())
                continue
            if after and self._decoder.is_waiting(self._stream.server_position):
                self._stream.wait(_TICK)
                yield Batch((), after)
                continue
            if (idle := self._idle()) > position and self._decoder.may_move_on():
                position = idle
            elif not self._is_ahead:
                self._stream.wait(_TICK)
            self._is_ahead = False
            yield Batch((), self._named(position), notes=self._news())
        if not self._decoder.is_expecting:
            yield from self._last_news(position)

    def acknowledge(self, position: str) -> None:
        """Let the server forget its log up to `position`, half a second later at most."""
        if self._decoder.is_expecting:
            return  # what was left out as published may be another log's
        published = self._watch.position = WALPosition.parse(position).commit_lsn
        lsn, now = self._acknowledgements.published(published), monotonic()
        if now - self._acknowledged_at >= _ACKNOWLEDGE_EVERY:
            self._acknowledged_at = now
            self._stream.acknowledge(lsn)

    def stop(self) -> None:
        """Make `open` and `batches` return soon."""
        self._wakeup.set()

    def close(self) -> None:
        """Let go of the slot."""
        self._open_things.close()

    def _news(self, *, is_last: bool = False) -> str | None:
        """Return the notes where they are not what the broker holds; raises what the watch found.

        That the tables were looked at once more is said now and then, and with the last ones.
        """
        watch = self._watch
        if watch.error is not None:
            raise watch.error
        said, looked = self._decoder.notes(), watch.looked
        notes = watch.notes  # after `looked`: they may be newer
        is_due = looked != self._looked and (is_last or monotonic() >= self._note_at)
        if notes is self._compared and said is None and not is_due:
            return None
        self._compared, self._said = notes, said or self._said
        if self._said is not None:
            notes = replace(notes, others={**notes.others, _DECODER: self._said})
        noted, self._noted = self._noted, format_notes(replace(notes, looked=looked))
        self._looked = looked
        self._note_at = monotonic() + max(_LOOKED_EVERY, len(self._noted) / _LOOKED_RATE)
        return None if noted == self._noted else self._noted

    def _last_news(self, position: WALPosition) -> Iterator[Batch]:
        """Yield what the watch found and the broker does not know yet: the next start would take it for a gap."""
        self._watch.close()
        if self._watch.error is None and (notes := self._news(is_last=True)) is not None:
            yield Batch((), self._named(position), notes=notes)

    def _read(self, changes: list[WALChange]) -> bool:
        """Read what the server has for us right now, up to a batch; return whether one may read on before it is held.

        Behind a message that describes a table, which has no place of its own, psycopg2 takes over the place of a
        keepalive, and tells it a server that asks, as one does that shuts down. The transactions before that place
        have to be held by then. (A Begin of a transaction that came from another server has no place either; but the
        server sends the next message together with it, and a batch for each such transaction would be slow.)
        """
        read, decode = self._stream.read, self._decoder.decode
        full, size = self._batch_size, 0
        with translated():
            while len(changes) < full and size < _MAX_BYTES:
                message = read()
                if message is None:
                    return True
                payload = message.payload
                size += len(payload)
                boundary = decode(payload, changes)
                if boundary is not None:
                    self._note(boundary)
                elif not message.data_start and (changes or self._is_ahead):
                    return False
        return True

    def _note(self, boundary: Begin | Commit) -> None:
        self._in_transaction = isinstance(boundary, Begin)
        if isinstance(boundary, Commit):
            self._read_up_to = boundary.end_lsn
            self._acknowledgements.ended(boundary.end_lsn)

    def _position_of(self, change: WALChange) -> WALPosition:
        """Return the end of its transaction where that was read: no acknowledgement goes beyond the checkpoint."""
        if self._read_up_to <= change.transaction.commit_lsn:
            return WALPosition(change.transaction.commit_lsn, change.ordinal)
        return WALPosition.before(self._read_up_to)

    def _idle(self) -> WALPosition:
        """Return how far we have read, also of log that does not concern us: the server may forget that too."""
        server_position, now = self._stream.server_position, monotonic()
        if self._in_transaction:
            return WALPosition(0, 0)
        if server_position > self._read_up_to and now - self._idle_at >= _IDLE_EVERY:
            self._idle_at = now
            self._read_up_to = server_position
            self._acknowledgements.ended(server_position)
        return WALPosition.before(self._read_up_to)

    def _open(self, saved: Callable[[], Saved | None]) -> None:
        self.close()
        connect_here = partial(connect, self._database_url)
        with ExitStack() as stack, closing(connect_here()) as connection:
            refuse_standby(connection)
            slot = self._take_turn(connection)
            # First, so that nothing is made on a server, or through a pooler, that does not let us read.
            replication = stack.enter_context(closing(connect_replication(self._database_url)))
            self._prepare(connection, slot, saved())
            sender_timeout = float(fetch_value(connection, _SENDER_TIMEOUT))
            self._log = identify(replication)
            slot = read_slot(replication, self._slot)
            self._confirmed = parse_lsn((slot and slot.confirmed_flush_lsn) or "0/0")
            self.source = self._log.system
            self._watch = TableWatch(connect_here, self._keeper, self._prepared.notes)
            stack.callback(self._watch.close)
            plugin = open_plugin(
                self._plugin,
                connect_here,
                publication=self._publication,
                routes=self._routes,
                slot=self._slot,
                notes=self._said,
                source=self.source,
                codec=log_codec(replication),
                announced=self._watch.announced,
            )
            stack.callback(plugin.close)
            self._decoder = plugin.decoder
            self._stream = stack.enter_context(
                ReplicationStream(
                    replication,
                    self._wakeup,
                    sender_timeout=sender_timeout,
                    is_shutting_down=partial(is_shutting_down, self._database_url, replication),
                )
            )
            with self._explained(streams=False):
                taken = self._stream.start(self._slot, plugin.options)
            self._watch.start(self._prepared.looked)
            self._acknowledgements = Acknowledgements(replay_window=self._replay_window)
            self._in_transaction = self._is_ahead = False
            self._read_up_to = 0
            stack.callback(self._remember)
            stack.callback(self._acknowledge_the_rest)
            self._open_things = stack.pop_all()
        log.info("streaming", slot=self._slot, plugin=self._plugin)
        if taken is not plugin.options[0]:
            log.warning("old_plugin", plugin=self._plugin, lacks=plugin.lacks_when_old)

    def _acknowledge_the_rest(self) -> None:
        # A server that is gone will send it again, and the checkpoint knows better.
        with suppress(SourceLostError):
            self._stream.acknowledge(self._acknowledgements.lsn)

    def _remember(self) -> None:
        """Note how far we brought the slot: what is beyond it at the next start, somebody else did."""
        self._told = max(self._told, self._stream.flushed, self._stream.server_position)

    def _take_turn(self, connection: Connection) -> Slot | None:
        """Return the slot as it is; until the session ends, no other listener of this name prepares the server.

        Raises SlotInUseError where another listener reads, or is about to.
        """
        if not fetch_value(connection, "SELECT pg_try_advisory_lock(%s)", [_lock_of(self._slot)]):
            raise SlotInUseError(f"Another listener is about to read from the slot {self._slot}.")
        slot = read_slot(connection, self._slot)
        if slot and slot.active_pid:
            raise SlotInUseError(f"The server's process {slot.active_pid} reads from the slot {slot.name}.")
        return slot

    def _prepare(self, connection: Connection, slot: Slot | None, saved: Saved | None) -> None:
        """Make what is missing on the server: first the publication, then the slot."""
        publication = self._keeper.publication
        gap = find_gap(connection, slot, name=self._slot, publication=publication, saved=saved)
        if gap and not self._accept_gap:
            raise gap
        with _races_lost():
            self._prepare_tables(connection, slot, saved, is_anew=bool(gap))
        if gap:
            log.error("gap_accepted", gap=gap.message)
            if slot:
                with self._explained(streams=False):
                    drop_slot(connection, self._slot)
            self._gap_is_accepted = True
        self._is_new = bool(gap) or slot is None
        if self._is_new:
            with _races_lost(), self._explained(streams=False):
                create_slot(
                    connection, self._slot, self._plugin, failover=self._failover, wakeup=self._wakeup
                )
        elif slot:
            check_slot(slot, plugin=self._plugin, database=connection.info.dbname)

    def _prepare_tables(
        self, connection: Connection, slot: Slot | None, saved: Saved | None, *, is_anew: bool
    ) -> None:
        """Compare the tables with the notes, unless an accepted gap covers all that happened since."""
        self._noted = saved.notes if saved else None
        notes = parse_notes(self._noted)
        self._said = notes.others.get(_DECODER)
        is_assumed = saved is None and slot is not None  # or the broker has lost what it held
        if is_anew:
            notes = replace(notes, tables=None)
        elif is_assumed:
            notes = self._keeper.assumed(connection, parse_lsn((slot and slot.confirmed_flush_lsn) or "0/0"))
        self._prepared = self._keeper.prepare(
            connection,
            notes,
            position=published_lsn(saved),
            accept_gap=self._accept_gap,
            is_noted=not is_assumed,
        )
        self._compared = None

    @contextmanager
    def _explained(self, *, streams: bool) -> Iterator[None]:
        """Raise the server's errors with their reason and hint; `streams` tells that they came of reading on."""
        try:
            yield
        except TableRenamedError:
            raise
        except (SourceError, SourceLostError) as error:
            connect_here = partial(connect, self._database_url)
            explained = explain(error, connect_here, self._slot, plugin=self._plugin, streams=streams)
            has_hint = explained is not error or isinstance(error, UndescribedTableError)
            if streams and isinstance(error, SourceError) and not has_hint:
                explained = self._stuck(error)
            if explained is error:
                raise
            raise explained from error

    def _stuck(self, error: SourceError) -> SourceError:
        """Say where in the log a message stands that the server cannot make, or that we cannot read."""
        message = error.message.rstrip(".")
        if not self._in_transaction:
            return SourceError(f"{message}. Reading stopped between two transactions.", hint=UPDATE)
        lsn = self._decoder.commit_lsn
        return SourceError(
            f"{message}. Reading stopped in the transaction that commits at {format_lsn(lsn)}.",
            hint=STUCK.format(slot=self._slot, beyond=format_lsn(lsn + 1)),
        )

    def _resume(self, checkpoint: str) -> Start:
        return resume(checkpoint, self._log, slot=self._slot, confirmed=self._confirmed, told=self._told)

    def _named(self, position: WALPosition) -> str:
        return str(Place(self._decoder.eras.of(position.commit_lsn), position, self._last))

    def _next_generation(self, checkpoint: str) -> str:
        """Return the checkpoint behind an accepted gap: what the slot has from now on is new, wherever it stands."""
        eras = self._log.eras(Place.parse(checkpoint).era.generation + 1)
        return str(Place(eras.of(self._confirmed), WALPosition.before(self._confirmed), Published()))

    def _warn_of_loss(self, after: str | None, start: Start) -> None:
        """Say what a failover lost, and what a broker that lost its data makes of our acknowledgements."""
        spot = Place.parse(after).spot if after else "none"
        if start.lost_from:
            log.error(
                "failover_lost_changes",
                checkpoint=spot,
                lost_from=format_lsn(start.lost_from),
                reason="The new primary had not got all that the old one committed, or was restored to a point in "
                "time, and tasks of what is lost were published. Of what it commits nothing is missing.",
                hint="Let the listener wait for the standbys: synchronized_standby_slots on the primary.",
            )
        behind = after is None or WALPosition.parse(after) < WALPosition.before(self._confirmed)
        if behind and not self._is_new:
            log.error(
                "broker_behind",
                checkpoint=spot,
                acknowledged=format_lsn(self._confirmed),
                reason="The broker's checkpoint is older than what the database was told: it was restarted without "
                "its data, or with an old copy. Tasks that it held are lost where the database has no more of them.",
                hint="Keep the broker's data (appendonly yes), and some log to mend from: CDC_REPLAY_WINDOW=600",
            )


def _published(change: WALChange) -> Published:
    return Published(change.transaction.commit_lsn, change.transaction.committed, change.ordinal)


def _lock_of(slot: str) -> int:
    """Return the advisory lock that a listener holds while it prepares the server."""
    digest = hashlib.blake2b(f"cdc-tasks {slot}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)


@contextmanager
def _races_lost() -> Iterator[None]:
    """Raise SourceLostError where another session has just made, or changed, what this one was about to."""
    try:
        yield
    except SourceError as error:
        if sqlstate_of(error) not in _RACES:
            raise
        raise SourceLostError(error.message) from error
