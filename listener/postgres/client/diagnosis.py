"""Finds the reason of an error about a slot: one SQLSTATE has several possible reasons; the catalogue shows which."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Final, NamedTuple

from cdc_tasks.errors import CDCError
from listener.core.source import GapError, SourceError, SourceLostError
from listener.postgres.client.connection import Connection, fetch
from listener.postgres.client.errors import PermissionDeniedError, sqlstate_of
from listener.postgres.client.host import find_host, in_words_of
from listener.postgres.client.slot import gap_of, read_slot
from listener.postgres.hints import (
    ACCEPT_GAP,
    LOGICAL,
    PLUGIN,
    PLUGIN_LIBRARIES,
    PRIMARY,
    REPLICATION,
    SLOTS,
    quoted,
)

__all__ = ["explain", "explained"]

_DENIED: Final = "42501"
_NO_FILE: Final = "58P01"  # the plugin's library, or a segment of the log
_MISSING: Final = "42704"  # the slot, or the publication as of then
_LIMIT: Final = "53400"
# The server cannot create the slot. Which of the three it reports depends on version and reason.
_UNFIT_SERVER: Final = frozenset({"55000", "0A000", "25006"})
_DIAGNOSED: Final = frozenset({_DENIED, _NO_FILE, _MISSING, _LIMIT, *_UNFIT_SERVER})

_FACTS: Final = """
SELECT pg_is_in_recovery(), current_setting('wal_level'), current_setting('max_replication_slots')::int,
  (SELECT count(*) FROM pg_replication_slots), rolname, rolreplication OR rolsuper OR EXISTS (
    SELECT FROM pg_roles AS granted
    WHERE granted.rolname = 'rds_replication' AND pg_has_role(granted.oid, 'MEMBER'))
FROM pg_roles WHERE rolname = current_user
"""


class _Facts(NamedTuple):
    is_standby: bool
    wal_level: str
    max_slots: int
    slots: int
    role: str
    may_replicate: bool


@contextmanager
def explained(connect: Callable[[], Connection], slot: str, *, plugin: str) -> Iterator[None]:
    """Raise the errors of the body, which creates, drops or starts the slot, with their reason and hint."""
    try:
        yield
    except (SourceError, SourceLostError) as error:
        reason = explain(error, connect, slot, plugin=plugin, streams=False)
        if reason is error:
            raise
        raise reason from error


def explain(
    error: CDCError, connect: Callable[[], Connection], slot: str, *, plugin: str, streams: bool
) -> CDCError:
    """Return `error` with its reason and hint; `error` itself if the catalogue has neither.

    The error occurred while creating the slot or starting to read it; with `streams`, while reading. `connect`
    opens an ordinary session.
    """
    sqlstate = sqlstate_of(error)
    if sqlstate not in _DIAGNOSED:
        return error
    try:
        with closing(connect()) as connection:
            reason = _explain(
                error, sqlstate, connection, slot, may_lack_plugin=plugin == "wal2json" and not streams
            )
            if reason is not error and reason.hint:
                reason.hint = in_words_of(find_host(connection), reason.hint)
            return reason
    except CDCError:  # the server does not answer now
        return error


def _explain(
    error: CDCError, sqlstate: str, connection: Connection, slot: str, *, may_lack_plugin: bool
) -> CDCError:
    facts = _Facts(*fetch(connection, _FACTS)[0])
    found = read_slot(connection, slot)
    if sqlstate == _DENIED:
        return _denied(error, facts)
    unfit = _unfit_server(error, facts) if sqlstate in _UNFIT_SERVER else None
    gap = gap_of(found) if found is not None else None
    if reason := unfit or gap:
        return reason
    if found is None and facts.slots >= facts.max_slots:
        return SourceError(error.message, hint=SLOTS, code="replication_slots")
    if sqlstate not in {_MISSING, _NO_FILE}:
        return error
    if may_lack_plugin:
        return SourceError(error.message, hint=PLUGIN, code="plugin")
    return GapError(error.message, hint=ACCEPT_GAP, code="log_gone")


def _denied(error: CDCError, facts: _Facts) -> CDCError:
    if not facts.may_replicate:
        hint = REPLICATION.format(role=quoted(facts.role))
        return PermissionDeniedError(error.message, hint=hint, code="replication_role")
    # Newer minor releases have a list of permitted plugins.
    return PermissionDeniedError(error.message, hint=PLUGIN_LIBRARIES, code="plugin")


def _unfit_server(error: CDCError, facts: _Facts) -> CDCError | None:
    if facts.is_standby:  # perhaps during a failover
        return SourceLostError(error.message, hint=PRIMARY, code="standby")
    if facts.wal_level != "logical":
        return SourceError(error.message, hint=LOGICAL, code="wal_level")
    if facts.max_slots == 0:
        return SourceError(error.message, hint=SLOTS, code="replication_slots")
    return None
