"""What PostgreSQL's errors mean for an operator, each with the command that mends it.

While a session is being made the driver has no SQLSTATE, only the server's text: those rules go by its
English words. A text that no rule knows is shown as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import psycopg2

from cdc_tasks.errors import CDCError
from listener.monitor import Gap, SourceError, SourceLost
from listener.postgres.cures import ACCEPT_GAP, LOGICAL, PRIMARY, REPLICATION, SENDERS, SLOTS, TLS
from listener.postgres.identifiers import quoted

__all__ = ["PermissionDenied", "SlotInUse", "translate"]


class PermissionDenied(SourceError):
    """The role may not do this."""


class SlotInUse(SourceLost):
    """Another session reads from the replication slot."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """Applies where the text matches and the SQLSTATE, if the driver has one, is one of `sqlstates`."""

    error: type[CDCError]
    hint: str  # may name {role} and {database}
    text: str = ""
    sqlstates: tuple[str, ...] = ()

    def applies(self, error: psycopg2.Error) -> bool:
        if error.pgcode is None and not self.text:
            return False
        if error.pgcode is not None and error.pgcode not in self.sqlstates:
            return False
        return re.search(self.text, str(error)) is not None


_RULES: Final = (
    # While a session is being made: who, where, how.
    _Rule(
        SourceError,
        "Check user and password in DATABASE_URL (write each of : / ? # [ ] @ % in them as %XX), "
        "or set a new one: ALTER ROLE {role} PASSWORD '…';",
        text=r"password authentication failed|no password supplied",
    ),
    _Rule(
        SourceError,
        "CREATE ROLE {role} LOGIN REPLICATION PASSWORD '…';",
        text=r'FATAL:\s+role ".*" does not exist',
    ),
    _Rule(SourceError, "ALTER ROLE {role} LOGIN;", text=r"is not permitted to log in"),
    _Rule(
        SourceError,
        "Add ?sslmode=require to DATABASE_URL if the server wants TLS; else add to its pg_hba.conf the line\n"
        "  host {database} {role} ADDRESS_OF_THE_LISTENER/32 scram-sha-256\n"
        "and run: SELECT pg_reload_conf();",
        text=r"no pg_hba\.conf entry|pg_hba\.conf rejects",
    ),
    _Rule(
        SourceError,
        "Check the database's name in DATABASE_URL, or: CREATE DATABASE {database};",
        text=r'FATAL:\s+database ".*" does not exist',
    ),
    _Rule(
        SourceError,
        "ALTER DATABASE {database} ALLOW_CONNECTIONS true;",
        text=r"is not currently accepting connections",
    ),
    _Rule(
        SourceError,
        "Turn TLS on in the server (ssl = on), or take sslmode out of DATABASE_URL.",
        text=r"does not support SSL",
    ),
    _Rule(
        SourceError,
        TLS,
        text=r"certificate|SSL error: (?!unexpected eof)",
    ),
    _Rule(
        SourceError,
        "Name the server itself in DATABASE_URL: replication does not go through a connection pooler.",
        text=r"unsupported startup parameter",
    ),
    _Rule(
        SourceLost,
        "Is PostgreSQL running there? Check host and port in DATABASE_URL.",
        text=r"Connection refused|timeout expired|could not translate host name|No route to host",
    ),
    # What the server allows and has room for.
    _Rule(
        PermissionDenied,
        REPLICATION,
        text=r"replication role to|permission denied to (start WAL sender|use replication slots)",
        sqlstates=("42501",),
    ),
    _Rule(
        SourceError,
        LOGICAL,
        text=r'logical decoding requires "?wal_level',
        sqlstates=("55000",),
    ),
    _Rule(
        SourceError,
        SLOTS,
        text=r'replication slots are in use|slots can only be used if "?max_replication_slots',
        sqlstates=("53400", "55000"),
    ),
    _Rule(
        SourceError,
        SENDERS,
        text=r'exceeds "?max_wal_senders"? \(currently 0\)',
    ),
    _Rule(
        SourceLost,  # the seat of our own lost connection is free again after wal_sender_timeout
        SENDERS,
        text=r'exceeds "?max_wal_senders',
    ),
    _Rule(
        SourceLost,
        "ALTER SYSTEM SET max_connections = 200;   then restart PostgreSQL",
        text=r"remaining connection slots|too many clients|too many connections",
    ),
    _Rule(
        SourceError,
        "Install it on the database server (Debian, Ubuntu: apt install postgresql-VERSION-wal2json), "
        "or set CDC_PLUGIN=pgoutput, which is always there.",
        text=r'could not access file "wal2json"',
        sqlstates=("58P01",),
    ),
    _Rule(
        SourceError,
        "ALTER SYSTEM SET output_plugin_libraries = 'pgoutput', 'wal2json'; SELECT pg_reload_conf();",
        text=r"may not be used as an output plugin",  # newer minor releases list those that may
        sqlstates=("42501",),
    ),
    _Rule(
        SourceLost,  # a failover may be on its way
        PRIMARY,
        text=r"recovery|read-only",
        sqlstates=("25006", "55000", "0A000"),
    ),
    # Slot and publication.
    _Rule(
        SlotInUse,
        "Another listener reads from it; this one takes over when that one ends. If it is to be a different "
        "one, give it a CDC_NAME of its own.",
        sqlstates=("55006",),
    ),
    _Rule(
        Gap,
        ACCEPT_GAP,
        text=r"can no longer (get changes|access)|(replication slot|publication) .* does not exist"
        r"|WAL segment .* has already been removed",
        sqlstates=("42704", "55000", "58P01", "XX000"),
    ),
    _Rule(PermissionDenied, "Let the owner, or a superuser, do it.", sqlstates=("42501",)),
)

# After these the same may work again: connection, resources, operator, locks (manual, appendix A).
_PASSING: Final = re.compile(r"08...|53...|57...|40...|55P03|58030")


def translate(error: psycopg2.Error, parameters: Mapping[str, Any]) -> CDCError:
    """Return the error in our words; `parameters` are libpq's, with nothing secret taken from them."""
    text = _primary(error)
    for rule in _RULES:
        if rule.applies(error):
            return rule.error(text, hint=rule.hint.format(**_named(parameters)))
    if _passes(error):
        return SourceLost(text)
    return SourceError(text, hint=error.diag.message_hint)


def _passes(error: psycopg2.Error) -> bool:
    if error.pgcode:
        return _PASSING.fullmatch(error.pgcode) is not None
    return isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError) or (
        type(error)
        is psycopg2.DatabaseError  # what it makes of a broken connection that libpq has no words for
    )


def _primary(error: psycopg2.Error) -> str:
    if error.diag.message_primary:
        detail = error.diag.message_detail
        return f"PostgreSQL: {error.diag.message_primary}" + (f" ({detail})" if detail else "")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"PostgreSQL: {lines[0] if lines else type(error).__name__}"


def _named(parameters: Mapping[str, Any]) -> dict[str, str]:
    role = parameters.get("user") or "ROLE"
    return {"role": quoted(role), "database": quoted(parameters.get("dbname") or role)}
