"""MySQL's and MariaDB's errors as CDCErrors, each with a code and the command that fixes it."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from typing import Final

import pymysql

from cdc_tasks.errors import CDCError
from listener.core.source import GapError, SourceError, SourceLostError

__all__ = [
    "ACCEPT_GAP",
    "HIDDEN_COMMIT",
    "GTIDModeError",
    "PermissionDeniedError",
    "ServerIdTakenError",
    "grant",
    "is_about_permissions",
    "setting",
    "translate",
    "translate_dump",
]

HIDDEN_COMMIT: Final = (
    "A replica may have to confirm it (semi-synchronous replication): SHOW STATUS LIKE 'rpl_semi_sync%'; "
    "Start the replica."
)

ACCEPT_GAP: Final = "To continue without the missing changes: python -m listener run --accept-gap"

_LOST: Final = frozenset(
    {
        *(1040, 1203, 1226),  # no connection left
        *(
            1053,
            1077,
            1152,
            1158,
            1159,
            1160,
            1161,
            1184,
            1189,
            1190,
            1927,
            4031,
        ),  # shutting down, killed, cut
        *(1205, 1213, 1317, 3024, 1969),  # lock wait, deadlock, interrupted
        *(2002, 2003, 2005, 2006, 2013, 2014, 2055),  # of the driver itself
    }
)


_PERMISSIONS: Final = frozenset({1227, 1142, 1143, 1370, 1044})


class PermissionDeniedError(SourceError):
    """The account lacks the privilege for this."""


class GTIDModeError(SourceError):
    """MySQL sends no transactions without a GTID while gtid_mode is ON, and none with one while it is OFF."""


class ServerIdTakenError(SourceError):
    """Another replica uses our server_id."""

    @classmethod
    def by(cls, server_id: int, whom: str) -> ServerIdTakenError:
        """Return the error that names who uses it."""
        return cls(f"The server_id {server_id} is taken by {whom}.", hint=_SERVER_ID_HINT)


@dataclass(frozen=True, slots=True)
class _Rule:
    error: type[CDCError]
    code: str | None  # of our error; None: its class's
    numbers: tuple[int, ...]  # of the server's error
    hint: str  # may name {user}; empty for none
    text: str = ""  # a pattern in the server's message

    def applies(self, number: int, text: str) -> bool:
        """Return whether the rule applies to this server error."""
        return number in self.numbers and re.search(self.text, text, re.IGNORECASE) is not None


_GRANT: Final = "GRANT SELECT, REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO {user};"

_TLS_HINT: Final = (
    "Write ?ssl_ca=/path/of/ca.pem in DATABASE_URL, with the certificate of the authority that signed the server's, "
    "and the host as the server's certificate names it."
)

_RULES: Final = (
    _Rule(
        SourceError,
        "authentication",
        (1045, 1698),
        "Check user and password in DATABASE_URL (write each of : / ? # [ ] @ % in them as %XX), "
        "or set a new one: ALTER USER {user} IDENTIFIED BY '…';",
    ),
    _Rule(SourceError, "tls", (3159,), "The server requires TLS: " + _TLS_HINT),
    _Rule(SourceError, "tls", (2003, 2026), _TLS_HINT, text=r"\[SSL|certificate"),
    _Rule(
        SourceError,
        "host_not_allowed",
        (1130,),
        "Allow the listener's host: CREATE USER {user} IDENTIFIED BY '…';   and then: " + _GRANT,
    ),
    _Rule(
        SourceError,
        "host_blocked",
        (1129,),
        "MySQL: TRUNCATE TABLE performance_schema.host_cache;   MariaDB: FLUSH HOSTS;",
    ),
    _Rule(SourceError, "database_missing", (1049, 1044), "Check the database's name in DATABASE_URL."),
    _Rule(SourceError, "log_bin", (1381,), "Start the server with log_bin and binlog_format=ROW."),
    _Rule(SourceLostError, "too_many_connections", (1040, 1203, 1226), ""),
    _Rule(
        SourceLostError,
        "unreachable",
        (2002, 2003, 2005),
        "Is the server running there? Check host and port in DATABASE_URL.",
    ),
)

_SERVER_ID_HINT: Final = (
    "Give the listener a server_id that neither the server nor a replica has: CDC_SERVER_ID=…"
)

# Replies of a server to a request for its log: error 1236 with a text.
_DUMP_RULES: Final = (
    _Rule(ServerIdTakenError, None, (1236, 4052), _SERVER_ID_HINT, text=r"same (server_uuid/)?server_id"),
    _Rule(
        GapError,
        "log_purged",
        (1236,),
        ACCEPT_GAP,
        text=r"purged|Could not find first log|Could not find GTID state",
    ),
    _Rule(
        GapError,
        "log_reset",
        (1236,),
        ACCEPT_GAP,
        text=r"not in the (master|source)'s binlog|more GTIDs than|position > file size|impossible position",
    ),
    _Rule(
        GTIDModeError,
        None,
        (1236,),
        "SET GLOBAL gtid_mode = ON_PERMISSIVE;\nWhen the listener has read what was committed before the mode was "
        "changed: SET GLOBAL gtid_mode = ON;",
        text=r"Cannot replicate anonymous",
    ),
    _Rule(
        GTIDModeError,
        None,
        (1236,),
        "SET GLOBAL gtid_mode = OFF_PERMISSIVE;\nWhen the listener has read what was committed before the mode was "
        "changed: SET GLOBAL gtid_mode = OFF;",
        text=r"Cannot replicate GTID.transaction",
    ),
    _Rule(
        SourceError,
        "log_unreadable",
        (1236,),
        "If the log was reset, start the listener again: it reports what is missing. Else see the server's error log.",
        text=r"I/O error reading log event",
    ),
    _Rule(
        SourceError,
        "max_allowed_packet",
        (1236,),
        "SET GLOBAL max_allowed_packet = 1073741824;",
        text=r"max_allowed_packet",
    ),
    _Rule(
        SourceError,
        "log_bin",
        (1236,),
        "Start the server with log_bin and binlog_format=ROW.",
        text=r"log is not open",
    ),
    _Rule(SourceError, "server_id", (1236,), "SET GLOBAL server_id = 1;", text=r"server.id was not set"),
)


def grant(user: str) -> str:
    """Return the statement that grants the account all privileges that it needs."""
    return _GRANT.format(user=user)


def is_about_permissions(error: pymysql.Error) -> bool:
    """Return whether the account lacks a privilege."""
    return _parts(error)[0] in _PERMISSIONS


def setting(name: str, value: str, *, mariadb: bool) -> str:
    """Return the statement that sets a variable permanently."""
    if mariadb:
        in_file = f"-- and {name} = {value} under [mariadb] in the server's configuration"
        return f"SET GLOBAL {name} = {value};   {in_file}"
    return f"SET PERSIST {name} = {value};"


def translate(error: pymysql.Error, user: str) -> CDCError:
    """Translate the driver's error; `user` is the account as SQL names it."""
    number, text = _parts(error)
    message = f"The database reports: {text} ({number})" if number else f"The database reports: {text}"
    if number in _PERMISSIONS:
        return PermissionDeniedError(message, hint=grant(user))
    for rule in (*_RULES, *_DUMP_RULES):
        if rule.applies(number, text):
            return rule.error(message, hint=rule.hint.format(user=user), code=rule.code)
    if number in _LOST or isinstance(error, pymysql.InterfaceError):
        return SourceLostError(message)
    return SourceError(message)


def translate_dump(number: int, text: str, user: str) -> CDCError:
    """Translate an error that the server sent instead of its log."""
    return translate(pymysql.OperationalError(number, text), user)


def _parts(error: pymysql.Error) -> tuple[int, str]:
    original = getattr(error, "original_exception", None)
    if isinstance(original, ssl.SSLError):
        return 2026, f"[SSL] {original}"
    if len(error.args) >= 2 and isinstance(error.args[0], int):
        return error.args[0], str(error.args[1])
    return 0, str(error)
