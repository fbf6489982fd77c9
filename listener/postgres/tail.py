"""Reads the write-ahead log from now on through a temporary slot, for `watch`.

The slot belongs to the session: the server drops it when the session ends for any reason. Nothing else is created or
changed. pgoutput sends the tables of a publication, so the listener's publication is used. If it does not exist, or
lacks a requested table, wal2json is used if the server has it: it needs no publication.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from time import monotonic
from typing import Final, NamedTuple
from uuid import uuid4

from psycopg2.extras import LogicalReplicationConnection

from cdc_tasks.changes import Change
from cdc_tasks.routing.router import BinlogRouter, Route
from listener.core.source import IDLE_INTERVAL, SourceError
from listener.core.wakeup import Wakeup
from listener.postgres.client.connection import (
    Connection,
    connect,
    connect_replication,
    fetch,
    fetch_value,
    is_shutting_down,
    log_codec,
    translated,
)
from listener.postgres.client.diagnosis import explained
from listener.postgres.client.errors import sqlstate_of
from listener.postgres.client.slot import create_slot, read_slot
from listener.postgres.client.stream import ReplicationStream
from listener.postgres.client.timeline import identify
from listener.postgres.codec.change import WALChange
from listener.postgres.codec.decoder import Begin, Commit, Decoder
from listener.postgres.log.position import LastPublished
from listener.postgres.plugins import Plugin, PluginName, open_plugin

__all__ = ["WALTail"]

_BATCH: Final = 200  # changes
_MAX_BYTES: Final = 1_000_000  # of messages in a batch
_ACKNOWLEDGE_EVERY: Final = 1.0  # seconds
_CHECK_LAG_EVERY: Final = 10.0  # seconds, while changes come
_MOST_STALLED: Final = (
    60.0  # seconds without a read, e.g. in a suspended terminal: then the slot must not keep log
)

_REFUSED: Final = "22023"  # the plugin does not know an option

_SENDER_TIMEOUT: Final = "SELECT setting::int / 1000.0 FROM pg_settings WHERE name = 'wal_sender_timeout'"

# All user tables, and whether the publication has them; of a partitioned table, a partition is enough.
_TABLES: Final = """
WITH published AS (
    SELECT format('%%I.%%I', schemaname, tablename)::regclass::oid AS oid
    FROM pg_publication_tables WHERE pubname = %s
)
SELECT n.nspname::text, c.relname::text, c.relkind = 'p',
  EXISTS (SELECT FROM published WHERE published.oid = c.oid OR (
    c.relkind = 'p' AND published.oid IN (SELECT relid FROM pg_partition_tree(c.oid))))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p'
  AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%%'
ORDER BY 1, 2
"""
_PUBLICATION: Final = "SELECT count(*) FROM pg_publication WHERE pubname = %s"


class _Table(NamedTuple):
    schema: str
    name: str
    is_partitioned: bool
    is_published: bool


class WALTail:
    """One replication connection with a temporary slot; fulfils `listener.core.tail.Tail`."""

    misses_changes = True  # the slot ends with the connection

    def __init__(
        self,
        database_url: str,
        *,
        publication: str,
        plugin: PluginName,
        routes: Sequence[Route],
        needed: Sequence[tuple[str, str]],
        prefixes: Sequence[str],
        most_lag: int,
    ) -> None:
        """`routes` select the tables; what they fire does not matter. `needed` are tables that must be visible.

        `publication` is the listener's; `prefixes` as `BinlogRouter.prefixes`. `most_lag` in bytes: with more lag, it
        ends.
        """
        self._url = database_url
        self._publication = publication
        self._plugin_name: PluginName = plugin
        self._routes = routes
        self._needed = needed
        self._prefixes = prefixes
        self._most_lag = most_lag
        self._connect = partial(connect, database_url)
        self._wakeup = Wakeup()
        self._resources = ExitStack()
        self._slot = f"cdc_watch_{uuid4().hex[:12]}"
        self.reads_by = ""
        self._lacks = ""  # why the listener's plugin does not send the requested tables
        self.unseen: Sequence[tuple[str, str]] = ()
        # Of one connection.
        self._stream: ReplicationStream
        self._decoder: Decoder
        self._ended = 0  # the LSN after the last transaction read
        self._in_transaction = False
        self._acknowledged_at = 0.0
        self._lag_checked_at = 0.0
        self._read_at = 0.0

    def open(self) -> None:
        """See `Tail.open`."""
        self.close()
        with ExitStack() as stack:
            with closing(self._connect()) as connection:
                name, tables = self._choose(connection)
                sender_timeout = float(fetch_value(connection, _SENDER_TIMEOUT))
            replication = stack.enter_context(closing(connect_replication(self._url)))
            source = identify(replication)  # refuses a standby
            self._create_slot(replication, name)
            plugin = self._open_plugin(replication, name, tables, source.system)
            stack.callback(plugin.close)
            self._decoder = plugin.decoder
            self._decoder.start(LastPublished(), source.eras(0), is_expected=False)
            self._stream = stack.enter_context(self._open_stream(replication, sender_timeout))
            self._start(replication, plugin, name)
            self._ended, self._in_transaction = 0, False
            self._resources = stack.pop_all()
        of = f" of the publication {self._publication}" if name == "pgoutput" else ""
        self.reads_by = f"with {name}{of} through the temporary slot {self._slot}"

    def changes(self) -> Iterator[Sequence[Change]]:
        """See `Tail.changes`."""
        while not self._wakeup.is_set:
            changes: list[WALChange] = []
            with translated():
                self._read(changes)
            self._decoder.verify(changes)
            yield changes
            self._acknowledge()
            if changes:
                self._check_lag()
            else:
                self._decoder.may_advance()
                self._stream.wait(IDLE_INTERVAL)

    def stop(self) -> None:
        """See `Tail.stop`."""
        self._wakeup.set()

    def close(self) -> None:
        """See `Tail.close`."""
        self._resources.close()

    # --- Opening ------------------------------------------------------------------------------------------

    def _choose(self, connection: Connection) -> tuple[PluginName, list[_Table]]:
        """Return the plugin that sends the requested tables, and all tables; note which it does not send."""
        tables = [_Table(*row) for row in fetch(connection, _TABLES, [self._publication])]
        partitioned = [(each.schema, each.name) for each in tables if each.is_partitioned]
        self._lacks = ""
        if self._plugin_name == "pgoutput":
            self.unseen = [(each.schema, each.name) for each in tables if not each.is_published]
            self._lacks = self._what_lacks(connection)
            if not self._lacks:
                return "pgoutput", tables
        self.unseen = partitioned
        if missing := set(self._needed).intersection(partitioned):
            raise self._unsent(
                self._lacks or f"wal2json does not send {_listed(sorted(missing))}, which is partitioned"
            )
        return "wal2json", tables

    def _what_lacks(self, connection: Connection) -> str:
        """Return why pgoutput does not send the requested tables; empty if it does."""
        if not fetch_value(connection, _PUBLICATION, [self._publication]):
            return f"The publication {self._publication} does not exist, and pgoutput needs a publication"
        missing = sorted(set(self._needed).intersection(self.unseen))
        if not missing:
            return ""
        return f"{_listed(missing)} is not in the publication {self._publication}, and pgoutput sends only what is"

    def _unsent(self, why: str) -> SourceError:
        return SourceError(
            f"{why}.",
            hint="Write a route for the table, and start the listener: it publishes the tables of its routes.\n"
            "Or name a publication that has it: CDC_PUBLICATION=name\n"
            "Or install wal2json on the server: it needs no publication, and has no partitioned tables.",
            code="not_published",
        )

    def _create_slot(self, replication: LogicalReplicationConnection, plugin: str) -> None:
        try:
            with explained(self._connect, self._slot, plugin=plugin):
                create_slot(replication, self._slot, plugin, temporary=True, wakeup=self._wakeup)
        except SourceError as error:
            if self._lacks and error.code == "plugin":
                raise self._unsent(self._lacks) from error
            raise

    def _open_plugin(
        self,
        replication: LogicalReplicationConnection,
        name: PluginName,
        tables: Sequence[_Table],
        source: str,
    ) -> Plugin:
        routes = self._routes
        if name == "wal2json" and any(each.is_partitioned for each in tables):
            routes = _without_partitioned(routes, tables)
        return open_plugin(
            name,
            self._connect,
            publication=self._publication,
            routes=routes,
            slot=self._slot,
            notes=None,
            source=source,
            codec=log_codec(replication),
            server_version=replication.info.server_version,
            prefixes=self._prefixes,
            is_visible=lambda _xid: True,  # only displayed: no task could start before its change is visible
        )

    def _open_stream(
        self, replication: LogicalReplicationConnection, sender_timeout: float
    ) -> ReplicationStream:
        self._read_at = monotonic()
        return ReplicationStream(
            replication,
            self._wakeup,
            sender_timeout=sender_timeout,
            is_shutting_down=lambda: self._is_stalled or is_shutting_down(self._url, replication),
        )

    def _start(self, replication: LogicalReplicationConnection, plugin: Plugin, name: str) -> None:
        """Start with the first options that the plugin accepts. A refusal drops the slot: errors end temporary ones."""
        *preferred, accepted = plugin.options
        for options in preferred:
            try:
                self._stream.start(self._slot, [options])
            except SourceError as error:
                if sqlstate_of(error) != _REFUSED:
                    raise
                self._create_slot(replication, name)
            else:
                return
        self._stream.start(self._slot, [accepted])

    @property
    def _is_stalled(self) -> bool:
        """Whether the changes are not being read: then the connection is closed, so the slot keeps no log."""
        return monotonic() - self._read_at > _MOST_STALLED

    def _check_lag(self) -> None:
        """Raise SourceError if reading is too slow: the server keeps the log for the slot meanwhile."""
        now = monotonic()
        if now - self._lag_checked_at < _CHECK_LAG_EVERY:
            return
        self._lag_checked_at = now
        with closing(self._connect()) as connection:
            slot = read_slot(connection, self._slot)
        if slot is not None and (slot.unconfirmed_bytes or 0) > self._most_lag:
            raise SourceError(
                f"Changes arrive faster than they can be shown: the server keeps {slot.unconfirmed_bytes:,} bytes of "
                "log for this, so watching ends.",
                hint="Watch fewer changes: python -m listener watch TABLE --where COLUMN=VALUE",
                code="watch_too_slow",
            )

    # --- Reading ------------------------------------------------------------------------------------------

    def _read(self, changes: list[WALChange]) -> None:
        """Read what the server has now, up to a batch. Raises psycopg2.Error."""
        self._read_at = monotonic()
        read, size = self._stream.read, 0
        while len(changes) < _BATCH and size < _MAX_BYTES and (message := read()) is not None:
            size += len(message.payload)
            boundary = self._decoder.decode(message.payload, changes)
            if isinstance(boundary, Begin):
                self._in_transaction = True
            elif isinstance(boundary, Commit):
                self._in_transaction, self._ended = False, boundary.end_lsn

    def _acknowledge(self) -> None:
        """Let the server drop the log that was read, from time to time."""
        now = monotonic()
        if now - self._acknowledged_at < _ACKNOWLEDGE_EVERY:
            return
        self._acknowledged_at = now
        self._stream.acknowledge(self._ended if self._in_transaction else self._stream.server_position)


def _listed(names: Sequence[tuple[str, str]]) -> str:
    return ", ".join(map(".".join, names))


def _without_partitioned(routes: Sequence[Route], tables: Sequence[_Table]) -> Sequence[Route]:
    """Return routes for the other tables by name: wal2json sends partitions, and refuses partitioned tables."""
    router = BinlogRouter()
    for each in tables:
        if not each.is_partitioned and any(route.matches(each.schema, each.name) for route in routes):
            router.register(each.schema, each.name, "all", "watch", even_muted=True)
    return router.routes
