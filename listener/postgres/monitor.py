"""PostgreSQL's write-ahead log as a Monitor: one slot, one publication, one reader."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from time import monotonic

import structlog
from psycopg2.extras import LogicalReplicationConnection

from cdc_tasks.routing.enqueued import MESSAGE_PREFIX
from cdc_tasks.routing.router import Route
from listener.core.backfill import BackfillRefusedError, Chunk, ChunkRequest
from listener.core.last_change import hold_back
from listener.core.source import IDLE_INTERVAL, Batch, GapError, Saved, SourceError, SourceLostError
from listener.core.visibility import VisibilityWait
from listener.core.wakeup import Wakeup
from listener.postgres.backfill.window import Window
from listener.postgres.client.connection import (
    Connection,
    connect,
    connect_replication,
    fetch_value,
    is_shutting_down,
    log_codec,
    translated,
)
from listener.postgres.client.diagnosis import explain, explained
from listener.postgres.client.errors import SlotInUseError
from listener.postgres.client.slot import Slot, read_slot
from listener.postgres.client.stream import ReplicationStream
from listener.postgres.client.timeline import ResumePoint, Timeline, identify, refuse_standby, resume
from listener.postgres.client.visibility import Visibility
from listener.postgres.codec.change import WALChange
from listener.postgres.codec.decoder import (
    Begin,
    Commit,
    Decoder,
    Hidden,
    UndescribedTableError,
    WALPosition,
    Watermark,
)
from listener.postgres.hints import AFTER_GAP, HIDDEN_COMMIT, STUCK, UPDATE
from listener.postgres.log.acknowledgements import Acknowledgements
from listener.postgres.log.position import LastPublished, WALCheckpoint, format_lsn, parse_lsn
from listener.postgres.plugins import Plugin, PluginName, open_plugin
from listener.postgres.setup import ServerSetup
from listener.postgres.tables.checkpoint_notes import Notes, NotesWriter
from listener.postgres.tables.sync import PreparedTables, TableRenamedError, TableSync
from listener.postgres.tables.watch import TableWatch

__all__ = ["PostgresWALMonitor"]

log = structlog.get_logger()

_MAX_BYTES = 1_000_000  # of messages in a batch: wide rows make smaller batches
_TICK = IDLE_INTERVAL
_ACKNOWLEDGE_EVERY = 0.5  # seconds
_IDLE_EVERY = 1.0  # seconds between two acknowledgements of log without changes for the listener
_STANDBY_EVERY = 1.0  # seconds between two attempts of a listener that waits for another one to end

_SENDER_TIMEOUT = "SELECT setting::int / 1000.0 FROM pg_settings WHERE name = 'wal_sender_timeout'"


class PostgresWALMonitor:
    """Reads one database's changes through a logical replication slot; implements `listener.core.source.Monitor`."""

    source: str  # the cluster's system identifier, in hexadecimal; known once open

    def __init__(
        self,
        database_url: str,
        *,
        slot: str,
        publication: str,
        routes: Sequence[Route],
        prefixes: Collection[str] = (MESSAGE_PREFIX,),
        plugin: PluginName = "pgoutput",
        batch_size: int = 1000,
        failover: bool = False,
        replay_window: float = 0.0,
        accept_gap: bool = False,
        column_lists: bool = False,
    ) -> None:
        """`batch_size` in changes; `prefixes` as `BinlogRouter.prefixes`.

        `failover`, `accept_gap`, `column_lists` as in the settings and command line.
        """
        self._database_url = database_url
        self._slot = slot
        self._publication = publication
        self._routes = routes
        self._prefixes = prefixes
        self._plugin = plugin
        self._batch_size = batch_size
        self._replay_window = replay_window
        self._accept_gap = accept_gap
        self.has_accepted_gap = False
        self.is_standby = False
        self._wakeup = Wakeup()
        self._connect = partial(connect, database_url)
        self._sync = TableSync(
            publication=publication if plugin == "pgoutput" else None,
            routes=routes,
            column_lists=column_lists,
        )
        self._setup = ServerSetup(
            connect=self._connect,
            slot=slot,
            plugin=plugin,
            failover=failover,
            sync=self._sync,
            wakeup=self._wakeup,
        )
        self._resources = ExitStack()  # what `close` closes
        # State of the server and the slot when the listener opened them.
        self._tables = PreparedTables(Notes(), 0)
        self._timeline: Timeline
        self._confirmed = 0  # the slot's position
        self._has_new_slot = False
        self._gap_is_accepted = False  # and no batch has noted it yet
        self._advanced_to = 0  # this listener may have moved the slot up to here
        # Of one connection.
        self._stream: ReplicationStream
        self._decoder: Decoder
        self._visibility: Visibility
        self._visibility_wait: VisibilityWait
        self._hidden: tuple[bytes, Hidden] | None = None  # the last message read, if it waits
        self._watch: TableWatch
        self._notes = NotesWriter()
        self._acknowledgements = Acknowledgements(replay_window=replay_window)
        self._acknowledged_at = 0.0
        self._window: Window
        self._mark: Watermark | None = None  # at the end of the changes read
        self._in_transaction = False
        self._held: list[WALChange] = []  # read, but left for the next batch: see `hold_back`
        self._ran_dry = False  # the server had no more data when reading stopped
        self._is_ahead = False  # the broker may not have the last batch yet
        self._last = LastPublished()  # the last change, of this run or an earlier one
        self._read_up_to = 0  # the end of the last transaction, or of log without changes for the listener
        self._idle_at = 0.0

    @property
    def silence(self) -> float:
        """See `Monitor.silence`."""
        stream = vars(self).get("_stream")
        return 0.0 if stream is None else stream.silence

    def open(self, *, saved: Saved | None, again: Callable[[], Saved | None] | None = None) -> None:
        """Become the only reader of the slot; see `Monitor.open`."""
        try:
            self._become_reader(saved, again)
        finally:
            self.is_standby = False

    def _become_reader(self, saved: Saved | None, again: Callable[[], Saved | None] | None) -> None:
        while not self._wakeup.is_set:
            try:
                self._open(again if self.is_standby and again else lambda: saved)
            except SlotInUseError as error:
                if not self.is_standby:
                    log.info("standby", slot=self._slot, reason=error.message)
                    self.is_standby = True
                self._wakeup.wait(_STANDBY_EVERY)
            else:
                return

    def batches(self, after: str | None) -> Iterator[Batch]:
        """Yield the changes after `after`; see `Monitor.batches`."""
        if after and self._gap_is_accepted:
            after = self._next_generation(after)
        self._gap_is_accepted = False
        try:
            yield from self._batches(after)
            if self._stream.has_answered:
                yield from self._answered_position()
        except SourceLostError:
            yield from self._answered_position()
            raise
        except GapError as gap:
            if after is None or not self._accept_gap:
                raise
            log.error("gap_accepted", gap=gap.message, hint=AFTER_GAP)  # noqa: TRY400 - a person needs no traceback
            self.has_accepted_gap = True
            after = self._next_generation(after)
            # First the checkpoint: changes read from now on have its generation. Then all is read again, even what was
            # left out as published: that belonged to another log.
            yield Batch((), after)
            self.open(saved=Saved(after))
            yield from self._batches(after)

    def acknowledge(self, position: str) -> None:
        """Let the server discard its log up to `position`, up to half a second later."""
        if self._decoder.awaits_last_published:
            return  # `position` may belong to another log
        published = WALPosition.parse(position).commit_lsn
        self._watch.published(published)
        lsn, now = self._acknowledgements.published(published), monotonic()
        if now - self._acknowledged_at >= _ACKNOWLEDGE_EVERY:
            self._acknowledged_at = now
            self._stream.acknowledge(lsn)

    def read_chunk(self, request: ChunkRequest, /) -> None:
        """Start to read rows for a backfill; see `Monitor.read_chunk`."""
        self._window.start(request)

    def stop(self) -> None:
        """Make `open` and `batches` return soon."""
        self._wakeup.set()

    def close(self) -> None:
        """Send the last acknowledgement, and close all connections."""
        self._resources.close()

    # --- Opening ------------------------------------------------------------------------------------------

    def _open(self, saved: Callable[[], Saved | None]) -> None:
        """Prepare the server, start the stream, and watch the tables from then on. Raise SlotInUseError."""
        self.close()
        with ExitStack() as stack, closing(self._connect()) as connection:
            refuse_standby(connection)
            slot = self._setup.acquire(connection)
            # Before anything is created: this fails if the server, or a pooler before it, does not support replication.
            replication = stack.enter_context(closing(connect_replication(self._database_url)))
            self._prepare_server(connection, slot, saved())
            self._identify_server(replication)
            self._watch_visibility(stack, replication)
            self._watch = TableWatch(
                self._connect, self._sync, self._tables.notes, on_renewal=self._visibility.renew
            )
            stack.callback(self._watch.close)
            plugin = self._open_plugin(replication)
            stack.callback(plugin.close)
            self._window = self._open_window(plugin)
            stack.callback(self._window.close)
            options = self._start_stream(stack, connection, replication, plugin)
            self._watch.start(self._tables.checked_lsn)
            stack.callback(self._keep_advanced)
            stack.callback(self._acknowledge_the_rest)
            self._resources = stack.pop_all()
        log.info("streaming", slot=self._slot, plugin=self._plugin)
        if options is not plugin.options[0]:
            log.warning("old_plugin", plugin=self._plugin, lacks=plugin.lacks_when_old)

    def _prepare_server(self, connection: Connection, slot: Slot | None, saved: Saved | None) -> None:
        notes = self._notes.restart(saved.notes if saved else None)
        prepared = self._setup.prepare(connection, slot, saved, notes, accept_gap=self._accept_gap)
        self._tables = prepared.tables
        self._has_new_slot = prepared.has_new_slot
        self._gap_is_accepted |= prepared.gap_is_accepted
        self.has_accepted_gap |= prepared.gap_is_accepted or prepared.tables.gap_is_accepted

    def _identify_server(self, replication: LogicalReplicationConnection) -> None:
        self._timeline = identify(replication)
        self.source = self._timeline.system
        slot = read_slot(replication, self._slot)
        self._confirmed = parse_lsn((slot and slot.confirmed_flush_lsn) or "0/0")

    def _watch_visibility(self, stack: ExitStack, replication: LogicalReplicationConnection) -> None:
        self._hidden = None
        self._visibility = Visibility(partial(connect, self._database_url, beside=replication))
        stack.callback(self._visibility.close)
        self._visibility.renew()
        self._visibility_wait = VisibilityWait(self._wakeup, hint=HIDDEN_COMMIT)

    def _open_plugin(self, replication: LogicalReplicationConnection) -> Plugin:
        plugin = open_plugin(
            self._plugin,
            self._connect,
            publication=self._publication,
            routes=self._routes,
            prefixes=self._prefixes,
            slot=self._slot,
            notes=self._notes.decoder,
            source=self.source,
            codec=log_codec(replication),
            server_version=replication.info.server_version,
            announced=self._watch.announced,
            is_visible=self._visibility.shows,
        )
        self._decoder = plugin.decoder
        return plugin

    def _open_window(self, plugin: Plugin) -> Window:
        self._mark = None
        refusal = BackfillRefusedError(
            "pgoutput sends no logical messages before PostgreSQL 14, but a backfill needs them for its marks.",
            hint="Use CDC_PLUGIN=wal2json, with another CDC_NAME, or a later PostgreSQL.",
            code="backfill_unsupported",
        )
        return Window(
            self._connect,
            plugin.decoder,
            source=self.source,
            publication=self._publication if self._plugin == "pgoutput" else None,
            refusal=None if plugin.has_messages else refusal,
        )

    def _start_stream(
        self,
        stack: ExitStack,
        connection: Connection,
        replication: LogicalReplicationConnection,
        plugin: Plugin,
    ) -> Mapping[str, str]:
        """Start to read from the slot; return those of the plugin's options that the server accepted."""
        self._stream = stack.enter_context(
            ReplicationStream(
                replication,
                self._wakeup,
                sender_timeout=float(fetch_value(connection, _SENDER_TIMEOUT)),
                is_shutting_down=partial(is_shutting_down, self._database_url, replication),
            )
        )
        self._acknowledgements = Acknowledgements(replay_window=self._replay_window)
        self._in_transaction = self._is_ahead = False
        self._held = []
        self._read_up_to = 0
        with explained(self._connect, self._slot, plugin=self._plugin):
            return self._stream.start(self._slot, plugin.options)

    def _acknowledge_the_rest(self) -> None:
        # If the server is lost, it sends this part of the log again, and the checkpoint leaves it out.
        with suppress(SourceLostError):
            self._stream.acknowledge(self._acknowledgements.lsn)

    def _keep_advanced(self) -> None:
        """Note up to where we moved the slot: if it is further at the next start, someone else moved it."""
        self._advanced_to = max(self._advanced_to, self._stream.flushed, self._stream.server_position)

    # --- Reading ------------------------------------------------------------------------------------------

    def _batches(self, after: str | None) -> Iterator[Batch]:
        """Yield batches until `stop`: an empty one every `_TICK` while nothing comes."""
        position = self._start_decoder(after)
        if not self._decoder.awaits_last_published:
            # Immediately, so the broker has a checkpoint from the start: a missing one then means lost data.
            yield self._empty_batch(position)
        while not self._wakeup.is_set:
            yield from self._until_visible(position, after)
            self._accept_gap &= self._decoder.awaits_last_published  # only this gap, not a later one
            changes, self._held = self._held, []
            try:
                may_read_on = self._read(changes)
            except TableRenamedError:
                if not self._decoder.awaits_last_published:
                    # Keep the name in the notes. The changes before it are read again.
                    yield self._empty_batch(position)
                raise
            self._decoder.verify(changes)
            self._held = hold_back(changes, self._decoder.transaction.id_head) if self._in_transaction else []
            mark, self._mark = self._mark, None
            chunk = self._window.passed(changes, mark) if self._window.is_busy else None
            if changes:
                position = self._position_of(changes[-1])
                yield self._batch(changes, position, may_read_on=may_read_on, chunk=chunk)
            elif chunk is not None:
                self._is_ahead = True
                yield Batch(
                    (), self._checkpoint(position), chunk.at, True, notes=self._changed_notes(), chunk=chunk
                )
            elif self._stopped_early(mark):
                continue
            elif after and self._decoder.is_waiting(self._stream.server_position):
                self._stream.wait(_TICK)
                yield Batch((), after)
            else:
                position = self._advance(position)
                yield self._empty_batch(position)
        if not self._decoder.awaits_last_published:
            yield from self._last_notes(position)

    def _start_decoder(self, after: str | None) -> WALPosition:
        """Let the decoder leave out published changes; return the position from which reading begins.

        It is the slot's position, not the checkpoint's. The log was read up to the checkpoint, but a part without any
        for the listener may contain other changes after a restore.
        """
        start = self._resume(after) if after else ResumePoint()
        self._warn_of_loss(after, start)
        self._last = start.last
        eras = self._timeline.eras(start.generation)
        self._decoder.start(start.last, eras, is_expected=start.is_expected)
        return WALPosition.before(self._confirmed)

    def _read(self, changes: list[WALChange]) -> bool:
        """Read what the server has now, up to a batch; return whether to continue before the broker has it.

        Not after a message without an LSN, such as the description of a table. There psycopg2 takes over the LSN of a
        keepalive, and sends it to a server that requests a reply, as at shutdown. The broker must have all before that
        LSN by then. (The Begin of a transaction replicated from another server has no LSN either. But the
        server sends the next message together with it, and a batch for each such transaction would be slow.)
        """
        with self._errors_explained():
            read, decode = self._stream.read, self._decoder.decode
            full, size = self._batch_size + len(changes), 0
            self._ran_dry = False
            hidden, self._hidden = self._hidden, None
            if hidden is not None:
                payload, _ = hidden
                if (boundary := decode(payload, changes)) and self._note(boundary, payload):
                    return True
            with translated():
                while len(changes) < full and size < _MAX_BYTES:
                    message = read()
                    if message is None:
                        self._ran_dry = True
                        return True
                    payload = message.payload
                    size += len(payload)
                    boundary = decode(payload, changes)
                    if boundary is not None:
                        if self._note(boundary, payload):
                            return True
                    elif not message.data_start and (changes or self._is_ahead):
                        return False
        return True

    def _until_visible(self, position: WALPosition, after: str | None) -> Iterator[Batch]:
        """Yield batches without changes until sessions see the next transaction, or `stop`."""
        if self._hidden is None:
            return
        _, (commit_lsn, xid) = self._hidden
        wait, place, shows = (
            self._visibility_wait,
            format_lsn(commit_lsn),
            partial(self._visibility.shows, xid),
        )
        while not (wait.until(shows, place, seconds=_TICK) or self._wakeup.is_set):
            self._is_ahead = False
            awaits = self._decoder.awaits_last_published
            checkpoint = after if after and awaits else self._checkpoint(position)
            yield Batch((), checkpoint, commit_wait=wait.current)

    def _stopped_early(self, mark: Watermark | None) -> bool:
        """Return whether reading stopped without a change, at a mark, a hidden transaction or a full batch."""
        return mark is not None or self._hidden is not None or bool(self._held and not self._ran_dry)

    def _note(self, boundary: Begin | Commit | Hidden | Watermark, payload: bytes) -> bool:
        """Note the stream's position; return whether the batch ends there."""
        if isinstance(boundary, Hidden):
            self._hidden = payload, boundary
            return True
        if isinstance(boundary, Begin):
            self._in_transaction = True
            return False
        if isinstance(boundary, Commit):
            self._in_transaction = False
            self._read_up_to = boundary.end_lsn
            self._acknowledgements.ended(boundary.end_lsn)
            return False
        self._mark = boundary
        return True

    def _position_of(self, change: WALChange) -> WALPosition:
        """Return the end of the change's transaction if it has been read: acknowledgements end at the checkpoint."""
        if self._read_up_to <= change.commit.commit_lsn:
            return WALPosition(change.commit.commit_lsn, change.ordinal)
        return WALPosition.before(self._read_up_to)

    def _advance(self, position: WALPosition) -> WALPosition:
        """Return a later position if log without changes was read, or else wait a `_TICK`."""
        if (idle := self._idle_position()) > position and self._decoder.may_advance():
            position = idle
        elif not self._is_ahead:
            self._stream.wait(_TICK)
        self._is_ahead = False
        return position

    def _idle_position(self) -> WALPosition:
        """Return how far the log is read, including log without changes for us, which the server may also discard."""
        server_position, now = self._stream.server_position, monotonic()
        if self._in_transaction:
            return WALPosition(0, 0)
        if server_position > self._read_up_to and now - self._idle_at >= _IDLE_EVERY:
            self._idle_at = now
            self._read_up_to = server_position
            self._acknowledgements.ended(server_position)
        return WALPosition.before(self._read_up_to)

    def _answered_position(self) -> Iterator[Batch]:
        """Yield the LSN that psycopg2 may have sent to a server that shuts down: see ReplicationStream."""
        if not (self._stream.has_begun or self._decoder.awaits_last_published):
            lsn = max(self._stream.server_position, self._confirmed)
            yield Batch((), self._checkpoint(WALPosition.before(lsn)))

    # --- Batches, checkpoints and notes -------------------------------------------------------------------

    def _batch(
        self,
        changes: list[WALChange],
        position: WALPosition,
        *,
        may_read_on: bool,
        chunk: Chunk | None = None,
    ) -> Batch:
        last = changes[-1]
        transaction = last.commit
        self._last = LastPublished(transaction.commit_lsn, transaction.committed, last.ordinal)
        self._is_ahead = may_read_on
        return Batch(
            changes,
            self._checkpoint(position),
            last.committed_at,
            pipelined=may_read_on,
            notes=self._changed_notes(),
            chunk=chunk,
        )

    def _empty_batch(self, position: WALPosition) -> Batch:
        return Batch((), self._checkpoint(position), notes=self._changed_notes())

    def _checkpoint(self, position: WALPosition) -> str:
        return str(WALCheckpoint(self._decoder.eras.of(position.commit_lsn), position, self._last))

    def _next_generation(self, checkpoint: str) -> str:
        """Return the checkpoint after an accepted gap: everything the slot has from now on is new, at any LSN."""
        eras = self._timeline.eras(WALCheckpoint.parse(checkpoint).era.generation + 1)
        position = WALPosition.before(self._confirmed)
        return str(WALCheckpoint(eras.of(self._confirmed), position, LastPublished()))

    def _changed_notes(self, *, is_last: bool = False) -> str | None:
        """Return the notes if the broker does not have them. Raise the error that the watch found."""
        watch = self._watch
        if watch.error is not None:
            raise watch.error
        checked_lsn = watch.checked_lsn
        notes = watch.notes  # after `checked_lsn`: they may be newer, and never older
        return self._notes.changed(
            notes, checked_lsn=checked_lsn, decoder=self._decoder.notes(), is_last=is_last
        )

    def _last_notes(self, position: WALPosition) -> Iterator[Batch]:
        """Yield the findings of the watch since the last batch: without them the next start would report a gap."""
        self._watch.close()
        if self._watch.error is None and (notes := self._changed_notes(is_last=True)) is not None:
            yield Batch((), self._checkpoint(position), notes=notes)

    # --- What went wrong ----------------------------------------------------------------------------------

    @contextmanager
    def _errors_explained(self) -> Iterator[None]:
        """Raise the errors of reading with their reason and hint."""
        try:
            yield
        except (TableRenamedError, UndescribedTableError):
            raise
        except (SourceError, SourceLostError) as error:
            reason = explain(error, self._connect, self._slot, plugin=self._plugin, streams=True)
            if reason is error and isinstance(error, SourceError):
                reason = self._stuck(error)
            if reason is error:
                raise
            raise reason from error

    def _stuck(self, error: SourceError) -> SourceError:
        """Return the error with the position of a message that the server cannot send or the listener cannot read."""
        message = error.message.rstrip(".")
        if not self._in_transaction:
            return SourceError(
                f"{message}. Reading stopped between two transactions.", hint=UPDATE, code=error.code
            )
        lsn = self._decoder.commit_lsn
        return SourceError(
            f"{message}. Reading stopped in the transaction that commits at {format_lsn(lsn)}.",
            hint=STUCK.format(slot=self._slot, beyond=format_lsn(lsn + 1)),
            code="stuck_transaction",
        )

    def _resume(self, checkpoint: str) -> ResumePoint:
        return resume(
            checkpoint,
            self._timeline,
            slot=self._slot,
            confirmed=self._confirmed,
            advanced_to=self._advanced_to,
        )

    def _warn_of_loss(self, after: str | None, start: ResumePoint) -> None:
        """Log the changes that a failover lost, and a broker's loss of data."""
        label = WALCheckpoint.parse(after).label if after else "none"
        if start.lost_from:
            log.error(
                "failover_lost_changes",
                checkpoint=label,
                lost_from=format_lsn(start.lost_from),
                reason="The new primary did not have all that the old one committed, or was restored to a point in "
                "time. Tasks of the lost changes were published. No change of the new primary is missing.",
                hint="Let the listener wait for the standbys: synchronized_standby_slots on the primary.",
            )
        is_behind = after is None or WALPosition.parse(after) < WALPosition.before(self._confirmed)
        if is_behind and not self._has_new_slot:
            log.error(
                "broker_behind",
                checkpoint=label,
                acknowledged=format_lsn(self._confirmed),
                reason="The broker's checkpoint is older than what the listener acknowledged to the database: the "
                "broker was restarted without its data, or with an old copy. Its tasks are lost if the "
                "database no longer has their changes.",
                hint="Make the broker keep its data (appendonly yes), and PostgreSQL some log to publish again from: "
                "CDC_REPLAY_WINDOW=600",
            )
