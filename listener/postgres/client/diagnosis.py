"""What an error about a slot means: one SQLSTATE has many reasons, and the catalogue tells which it is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Final, NamedTuple

from cdc_tasks.errors import CDCError
from listener.core.source import GapError, SourceError, SourceLostError
from listener.postgres.client.connection import Connection, fetch
from listener.postgres.client.errors import PermissionDeniedError, sqlstate_of
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

__all__ = ["explain"]

_DENIED: Final = "42501"
_NO_FILE: Final = "58P01"  # the plugin's library, or a segment of the log
_MISSING: Final = "42704"  # the slot, or the publication as of then
_LIMIT: Final = "53400"
_UNFIT_SERVER: Final = frozenset(
    {"55000", "0A000", "25006"}
)  # what a slot needs is not given: version and reason vary
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


def explain(
    error: CDCError, connect: Callable[[], Connection], slot: str, *, plugin: str, streams: bool
) -> CDCError:
    """Return `error` with its reason and hint, itself where the catalogue has neither.

    It came of making the slot, or of starting to read it, or, where it `streams`, of reading on. `connect` opens an
    ordinary session.
    """
    sqlstate = sqlstate_of(error)
    if sqlstate not in _DIAGNOSED:
        return error
    try:
        with closing(connect()) as connection:
            return _explain(
                error, sqlstate, connection, slot, may_lack_plugin=plugin == "wal2json" and not streams
            )
    except CDCError:  # the server does not answer now: the error speaks for itself
        return error


def _explain(
    error: CDCError, sqlstate: str, connection: Connection, slot: str, *, may_lack_plugin: bool
) -> CDCError:
    facts = _Facts(*fetch(connection, _FACTS)[0])
    found = read_slot(connection, slot)
    if sqlstate == _DENIED:
        return _denied(error, facts)
    if sqlstate in _UNFIT_SERVER and (unfit := _unfit_server(error, facts)):
        return unfit
    if found is not None and (gap := gap_of(found)):
        return gap
    if found is None and facts.slots >= facts.max_slots:
        return SourceError(error.message, hint=SLOTS)
    if sqlstate in {_MISSING, _NO_FILE}:
        return (
            SourceError(error.message, hint=PLUGIN)
            if may_lack_plugin
            else GapError(error.message, hint=ACCEPT_GAP)
        )
    return error


def _denied(error: CDCError, facts: _Facts) -> CDCError:
    if not facts.may_replicate:
        return PermissionDeniedError(error.message, hint=REPLICATION.format(role=quoted(facts.role)))
    return PermissionDeniedError(
        error.message, hint=PLUGIN_LIBRARIES
    )  # newer minor releases list those that may be used


def _unfit_server(error: CDCError, facts: _Facts) -> CDCError | None:
    if facts.is_standby:  # a failover may be on its way
        return SourceLostError(error.message, hint=PRIMARY)
    if facts.wal_level != "logical":
        return SourceError(error.message, hint=LOGICAL)
    if facts.max_slots == 0:
        return SourceError(error.message, hint=SLOTS)
    return None
