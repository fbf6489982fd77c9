"""Checks the tables every second while the listener reads: in a thread, because its loop may wait for the broker.

A check costs the server one small query of the catalogue (some milliseconds for thousands of tables), and more only if
something has changed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

import structlog

from cdc_tasks.errors import CDCError
from listener.core.source import GapError, SourceLostError
from listener.postgres.client.connection import Connection, execute, fetch, fetch_value
from listener.postgres.tables.catalogue import TableName
from listener.postgres.tables.checkpoint_notes import Notes
from listener.postgres.tables.reconciliation import Renamed, is_named
from listener.postgres.tables.sync import SyncResult, TableRenamedError, TableSync, describe_renamed, read_end

__all__ = ["TableWatch"]

log = structlog.get_logger()

_EVERY: Final = 1.0  # seconds between two checks, at least
_PAUSES: Final = 20  # after a long check the pause is this many times its duration …
_LONGEST: Final = 5.0  # … up to this many seconds
_LAST_CHECK: Final = 8.0  # seconds that `close` waits for a check
_LOCK_TIMEOUT: Final = "SET lock_timeout = '1s'"  # functions about partitions wait for locks on them
_RENEW_EVERY: Final = 10.0  # seconds: an open session would prevent a smart shutdown of the server

# The input of a check as one value: sums of hashes do not depend on the order of rows.
_SIGNATURE: Final = """
SELECT
  (SELECT to_jsonb(p)::text FROM pg_publication p WHERE p.pubname = %(publication)s),
  (SELECT ARRAY[count(*), sum(hashtextextended(concat_ws(',', r.oid, r.prrelid), 0)::numeric)]
   FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE p.pubname = %(publication)s),
  (SELECT ARRAY[count(*), sum(hashtextextended(concat_ws(',', c.oid, c.relname, c.relnamespace, c.relkind,
     c.relpersistence, c.relreplident, c.relispartition), 0)::numeric)]
   FROM pg_class c WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND c.oid >= 16384),
  (SELECT sum(hashtextextended(concat_ws(',', n.oid, n.nspname), 0)::numeric)
   FROM pg_namespace n WHERE n.nspname NOT LIKE 'pg\\_%%')
"""
_SCHEMAS: Final = """
SELECT array_agg(s.oid ORDER BY s.oid)::text
FROM pg_publication_namespace s JOIN pg_publication p ON p.oid = s.pnpubid WHERE p.pubname = %s
"""
# For lists of columns: the columns that identify a row.
_KEYS: Final = """
SELECT sum(hashtextextended(concat_ws(',', i.indexrelid, i.indrelid, i.indisprimary, i.indisreplident), 0)::numeric)
FROM pg_index i WHERE (i.indisprimary OR i.indisreplident) AND i.indexrelid >= 16384
"""

_NAMES_OF: Final = """
SELECT c.oid, n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = %(oid)s OR (n.nspname = %(schema)s AND c.relname = %(table)s AND c.relkind IN ('r', 'p'))
"""


def read_signature(connection: Connection, sync: TableSync) -> Any:
    """Return a value that changes when the tables or the publication change."""
    publication = sync.publication or ""
    signature: list[Any] = fetch(connection, _SIGNATURE, {"publication": publication})
    if publication and connection.info.server_version >= 15_00_00:
        signature.append(fetch_value(connection, _SCHEMAS, [publication]))
    if sync.column_lists:
        signature.append(fetch_value(connection, _KEYS))
    return signature


class TableWatch:
    """Checks one listener's tables in a thread.

    The loop reads `notes`, `checked_lsn` and `error`. Only the thread, `start` and `announced` change them. The notes
    are valid at least up to `checked_lsn`, so read `checked_lsn` first. `error` stops the listener.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        sync: TableSync,
        notes: Notes,
        *,
        on_renewal: Callable[[], None] = lambda: None,
    ) -> None:
        """`connect` opens an ordinary session; `notes` are those of the start.

        `on_renewal` is called in the thread when the session is renewed, to renew other idle sessions, too.
        """
        self._on_renewal = on_renewal
        self.notes = notes
        self.checked_lsn = 0  # the end of the log before the tables last matched the notes
        self.error: CDCError | None = None
        self._position = 0  # the LSN up to which the log is published
        self._connect = connect
        self._sync = sync
        self._session: Connection | None = None
        self._opened_at = 0.0
        self._signature: Any = None
        self._is_complete = True
        self._logged: set[str] = set()
        self._lock = threading.Lock()  # for changes of the notes
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="table-watch", daemon=True)

    def start(self, since: int) -> None:
        """Check from now on; at `since` all tables matched the notes."""
        self.checked_lsn = since
        self._thread.start()

    def close(self) -> None:
        """End the thread; safe to call twice. A check that hangs ends by itself, and no longer changes the notes."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(_LAST_CHECK)

    def published(self, lsn: int) -> None:
        """Note up to where the log is published."""
        self._position = lsn

    def announced(self, oid: int, name: TableName) -> None:
        """Raise TableRenamedError if a selected table's changes come under a name without a route.

        The name is noted, so the next start accepts a route for it even if no table has the name any more.
        """
        note = (self.notes.tables or {}).get(oid)
        routes = self._sync.routes
        if note is None or name == note.name or any(route.matches(*name) for route in routes):
            return
        if note.is_accepted and name in note.former:
            return
        now, is_replaced = self._ask(oid, note.name)
        if not is_named(routes, note.name) or is_replaced:
            log.warning("table_left_the_routes", table=".".join(note.name), name=".".join(name))
            return
        with self._lock:
            self._closed.set()  # no check may overwrite it
            self.notes = self.notes.with_former_name(oid, name, seen=self.checked_lsn)
        is_old = now == note.name
        old, new = (name, note.name) if is_old else (note.name, name)
        text, hint = describe_renamed(Renamed(oid, old, new, is_left=not is_old))
        raise TableRenamedError(text, hint=hint)

    def _ask(self, oid: int, name: TableName) -> tuple[TableName | None, bool]:
        """Return the table's name now, and whether another table has the noted name."""
        connection = self._connect()
        try:
            rows = fetch(connection, _NAMES_OF, {"oid": oid, "schema": name[0], "table": name[1]})
        finally:
            connection.close()
        own = [(schema, table) for found, schema, table in rows if found == oid]
        return (own[0] if own else None), len(rows) > len(own)

    def _watch(self) -> None:
        pause = _EVERY
        try:
            while self.error is None and not self._closed.wait(pause):
                began = monotonic()
                self._check_or_log()
                pause = max(_EVERY, min(_PAUSES * (monotonic() - began), _LONGEST))
        finally:
            self._close_session()
            if self.error is None and not self._closed.is_set():
                self.error = SourceLostError("The thread that checks the tables ended unexpectedly.")

    def _check_or_log(self) -> None:
        try:
            self._check()
        except (GapError, TableRenamedError) as error:
            self.error = error
        except SourceLostError as error:
            if self._session is None or self._session.closed:
                # The loop gets the same error, and reports it.
                log.debug("tables_unknown", reason=error.message)
            else:
                self._log_once("publication_unchanged", error.message, error.hint or "")
            self._close_session()
        except CDCError as error:
            self._log_once("tables_unknown", error.message, error.hint or "")

    def _check(self) -> None:
        connection = self._open()
        end = read_end(connection)
        signature = read_signature(connection, self._sync)
        if signature != self._signature or not self._is_complete:
            result = self._sync.reconcile(
                connection, self.notes, since=self.checked_lsn, position=self._position
            )
            self._take(result)
        self._signature = signature
        with self._lock:
            if not self._closed.is_set():  # otherwise the notes may be older
                self.checked_lsn = end

    def _take(self, result: SyncResult) -> None:
        with self._lock:
            if result.notes != self.notes and not self._closed.is_set():
                self.notes = result.notes
        self._is_complete = result.is_complete
        if result.is_complete:
            self._logged.clear()
        for trouble in result.troubles:
            self._log_once(*trouble)

    def _log_once(self, event: str, reason: str, hint: str) -> None:
        """Log it once, and again only after a check without errors."""
        if (key := f"{event} {reason} {hint}") not in self._logged:
            self._logged.add(key)
            log.error(event, reason=reason, hint=hint)

    def _open(self) -> Connection:
        if self._session is not None and monotonic() - self._opened_at > _RENEW_EVERY:
            self._close_session()
            self._on_renewal()
        if self._session is None or self._session.closed:
            self._session, self._opened_at = self._connect(), monotonic()
            execute(self._session, _LOCK_TIMEOUT)
        return self._session

    def _close_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
