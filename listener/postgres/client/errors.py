"""PostgreSQL's errors as CDCErrors, each with a code and the command that fixes it.

A server error is recognized by its SQLSTATE (manual, appendix A), because its message is in the server's
language. What an SQLSTATE means for a slot depends on the server's state: see `diagnosis`.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from functools import cache
from select import POLLIN, POLLOUT, poll
from time import monotonic
from typing import Any, Final, NamedTuple

import psycopg2
from psycopg2 import _psycopg
from psycopg2.extensions import POLL_OK, POLL_READ, connection

from cdc_tasks.errors import CDCError
from listener.core.source import SourceError, SourceLostError
from listener.postgres.hints import (
    AUTHENTICATION,
    CONNECTIONS,
    DATABASE,
    LOGIN,
    NOT_LOCAL,
    PG_HBA,
    POOLER,
    PRIMARY,
    REPLICATION,
    SENDERS,
    TLS,
    TLS_OFF,
    quoted,
)

__all__ = [
    "CONNECTING",
    "LockNotAvailableError",
    "NotAcceptingError",
    "PermissionDeniedError",
    "Refusal",
    "SlotInUseError",
    "TooManyConnectionsError",
    "error_text",
    "find_refusal",
    "refused",
    "sqlstate_of",
    "time_limit",
    "translate",
]


class PermissionDeniedError(SourceError):
    """The role does not have the permission for this."""


class SlotInUseError(SourceLostError):
    """Another session reads from the replication slot."""


class LockNotAvailableError(SourceLostError):
    """Another session holds a lock that the listener needs."""


class TooManyConnectionsError(SourceLostError):
    """The server cannot open another session now."""


class NotAcceptingError(SourceLostError):
    """The server is starting up or shutting down."""


_TAKES_OVER: Final = (
    "Another listener reads from it. This one takes over when that one ends. To run a second, independent listener, "
    "give it its own CDC_NAME."
)


class _Meaning(NamedTuple):
    """The meaning of an SQLSTATE."""

    error: type[CDCError]
    hint: str | None = None  # may name {role} and {database}
    code: str | None = None  # None: the class's


# SQLSTATEs of a session's statements.
_MEANINGS: Final[Mapping[str, _Meaning]] = {
    # A read-only server. The listener's sessions are read-write, so the server is a standby.
    "25006": _Meaning(SourceLostError, PRIMARY, "standby"),
    "42501": _Meaning(PermissionDeniedError, "Let the owner, or a superuser, do it."),
    "55006": _Meaning(SlotInUseError, _TAKES_OVER),
    "55P03": _Meaning(
        LockNotAvailableError,
        "See who holds a table: SELECT pid, query FROM pg_stat_activity WHERE state <> 'idle';",
    ),
}

_AUTHENTICATION: Final = _Meaning(SourceError, AUTHENTICATION, "authentication")
_OPTIONS: Final = _Meaning(SourceError, "Correct the options in DATABASE_URL.", "connection_options")

# SQLSTATEs of a refused session.
_REFUSALS: Final[Mapping[str, _Meaning]] = {
    "28P01": _AUTHENTICATION,
    "28000": _Meaning(SourceError, PG_HBA, "pg_hba"),
    "3D000": _Meaning(SourceError, DATABASE, "database_missing"),
    "55000": _Meaning(SourceError, "ALTER DATABASE {database} ALLOW_CONNECTIONS true;", "database_closed"),
    "53300": _Meaning(TooManyConnectionsError, CONNECTIONS),
    "57P03": _Meaning(NotAcceptingError, "It is starting up or shutting down; the listener retries."),
    "42704": _OPTIONS,  # unknown parameter
    "22023": _OPTIONS,  # value not accepted
}

# The same SQLSTATEs, by the function in the server's source that refused. The names are stable since version 9.
_REFUSING: Final[Mapping[str, _Meaning]] = {
    "InitializeSessionUserId": _Meaning(SourceError, LOGIN, "login"),
    "auth_failed": _AUTHENTICATION,
    "CheckMyDatabase": _Meaning(PermissionDeniedError, "GRANT CONNECT ON DATABASE {database} TO {role};"),
}
_BY_ROUTINE: Final = frozenset({"28000", "42501"})

# Messages of libpq and OpenSSL. They are in this process's language: English, because the listener sets no other.
_LIBPQ: Final = (
    (re.compile(r"does not support SSL"), _Meaning(SourceError, TLS_OFF, "tls")),
    (re.compile(r"certificate|SSL error: (?!unexpected eof)"), _Meaning(SourceError, TLS, "tls")),
    (
        re.compile(
            r"invalid (?!response)|definition of service|channel binding|authentication method requirement"
        ),
        _Meaning(SourceError, "Correct that part of DATABASE_URL.", "database_url"),
    ),
)

# Temporary errors: connection, resources, operator, locks.
_TEMPORARY: Final = re.compile(r"08...|53...|57...|40...|55P03|58030")


def translate(error: psycopg2.Error, parameters: Mapping[str, Any]) -> CDCError:
    """Return a CDCError for a session's error; `parameters` are libpq's, and no secret of them is used."""
    text = _primary(error)
    if meaning := _MEANINGS.get(error.pgcode or ""):
        return _made(meaning, text, parameters)
    if _is_temporary(error):
        return SourceLostError(text)
    # Not every server hint suits the listener: with "Specify another replication slot." it would lose changes.
    return SourceError(text, hint=None if error.pgcode == "55000" else error.diag.message_hint)


def refused(words: str, refusal: Refusal | None, parameters: Mapping[str, Any]) -> CDCError:
    """Return a CDCError with the reason why there is no session.

    `refusal` is None if the server has accepted a session since. `words` are the messages of the first attempt, which
    name each host.
    """
    text = _line(words, refusal)
    if refusal is None:
        return SourceLostError(text)
    find_meaning = _without_server if refusal.sqlstate is None else _refusal
    return _made(find_meaning(refusal, parameters), text, parameters)


def _made(meaning: _Meaning, text: str, parameters: Mapping[str, Any]) -> CDCError:
    hint = meaning.hint and meaning.hint.format(**_named(parameters))
    return meaning.error(text, hint=hint, code=meaning.code)


def sqlstate_of(error: BaseException) -> str | None:
    """Return the SQLSTATE of the driver's error behind `error`; None if there is none."""
    cause = error.__cause__
    return cause.pgcode if isinstance(cause, psycopg2.Error) else None


def _refusal(refusal: Refusal, parameters: Mapping[str, Any]) -> _Meaning:
    sqlstate, routine = refusal.sqlstate or "", refusal.routine or ""
    replicates = "replication" in parameters
    if sqlstate in _BY_ROUTINE and routine in _REFUSING:
        return _REFUSING[routine]
    if sqlstate == "42501" and replicates:
        return _Meaning(PermissionDeniedError, REPLICATION, "replication_role")
    if sqlstate == "53300" and replicates and routine != "InitializeSessionUserId":
        return _Meaning(TooManyConnectionsError, SENDERS, "wal_senders")
    # By its text: PgBouncer's messages are always English.
    if sqlstate == "08P01" and "unsupported startup parameter" in refusal.text:
        return _Meaning(SourceError, POOLER, "pooler")
    if meaning := _REFUSALS.get(sqlstate):
        return meaning
    return _Meaning(SourceLostError if _TEMPORARY.fullmatch(sqlstate) else SourceError)


def _without_server(refusal: Refusal, parameters: Mapping[str, Any]) -> _Meaning:
    if refusal.needs_password:
        return _AUTHENTICATION
    for words, meaning in _LIBPQ:
        if words.search(refusal.text):
            return meaning
    may_fail_over = parameters.get("target_session_attrs", "any") != "any"
    hint = f"{NOT_LOCAL} {PRIMARY}" if may_fail_over else NOT_LOCAL
    return _Meaning(SourceLostError, hint, "unreachable")


def _is_temporary(error: psycopg2.Error) -> bool:
    if error.pgcode:
        return _TEMPORARY.fullmatch(error.pgcode) is not None
    # psycopg2 raises a plain DatabaseError for a broken connection without a libpq message.
    is_broken = type(error) is psycopg2.DatabaseError
    return is_broken or isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError)


def _primary(error: psycopg2.Error) -> str:
    if error.diag.message_primary:
        detail = error.diag.message_detail
        return f"PostgreSQL: {error.diag.message_primary}" + (f" ({detail})" if detail else "")
    return f"PostgreSQL: {(_lines(str(error)) or [type(error).__name__])[0]}"


def _line(words: str, refusal: Refusal | None) -> str:
    """Return the line with the reason and the host: libpq writes one per host."""
    lines = _lines(words)
    message = refusal.text if refusal and refusal.sqlstate else ""
    last = next((line for line in reversed(lines) if message and message in line), None)
    return f"PostgreSQL: {last or (lines or ['no connection'])[0]}"


def _lines(words: str) -> list[str]:
    return [line.strip() for line in words.splitlines() if line.strip()]


def _named(parameters: Mapping[str, Any]) -> dict[str, str]:
    role = parameters.get("user") or "ROLE"
    return {"role": quoted(role), "database": quoted(parameters.get("dbname") or role)}


# --- Refused sessions -----------------------------------------------------------------------------------

_VERBOSE: Final = 2  # PQERRORS_VERBOSE


_LONGEST: Final = 60.0  # seconds for each host if connect_timeout is 0, which means forever


# FATAL:  28P01: password authentication failed …; LOCATION:  auth_failed, auth.c:317. The server translates `FATAL`.
_ERROR: Final = re.compile(r"^(?:.*?):  ([0-9A-Z]{5}): (.*)$", re.MULTILINE)


_LOCATION: Final = re.compile(r"^\S.*?:  (\w+), \S+:\d+$", re.MULTILINE)


# Raised by psycopg2 while connecting. Before a session has an encoding, messages are in that of the server's locale.
CONNECTING: Final = (psycopg2.Error, UnicodeDecodeError)


class Refusal(NamedTuple):
    """Why there is no session: the server's refusal, or libpq's own error if no server answered."""

    text: str  # the server's message, in its language, or libpq's
    sqlstate: str | None = None  # None: no server refused
    routine: str | None = None  # the function in PostgreSQL's source that refused: never translated
    needs_password: bool = False


def error_text(error: psycopg2.Error | UnicodeDecodeError) -> str:
    """Return the message of libpq or of the server."""
    if isinstance(error, UnicodeDecodeError):
        return error.object.decode(errors="backslashreplace")
    return str(error)


def find_refusal(parameters: Mapping[str, Any]) -> Refusal | None:
    """Connect with libpq's parameters, and return the refusal; None if the server accepts the session."""
    try:
        session: connection = psycopg2.connect(**parameters, async_=True)
    except psycopg2.Error as error:
        # Before the first byte: a host name without an address, a value that libpq refuses.
        return Refusal(str(error))
    try:
        _libpq().PQsetErrorVerbosity(session.pgconn_ptr, _VERBOSE)
        return _connect(session, monotonic() + time_limit(parameters))
    finally:
        session.close()


def _connect(session: connection, deadline: float) -> Refusal | None:
    try:
        while (state := session.poll()) != POLL_OK:
            waiting = poll()
            waiting.register(session.fileno(), POLLIN if state == POLL_READ else POLLOUT)
            left = deadline - monotonic()
            if left <= 0 or not waiting.poll(left * 1000):
                return Refusal("timeout expired")
    except CONNECTING as error:
        return _parse(error_text(error), needs_password=bool(session.info.needs_password))
    return None


def _parse(text: str, *, needs_password: bool) -> Refusal:
    """Return the last server's refusal: libpq tries the next host only if that may help."""
    errors = list(_ERROR.finditer(text))
    if not errors:
        return Refusal(text, needs_password=needs_password)
    last = errors[-1]
    location = _LOCATION.search(text, last.end())
    return Refusal(last[2], last[1], location[1] if location else None, needs_password)


def time_limit(parameters: Mapping[str, Any]) -> float:
    """Return the seconds after which libpq gives up a connection attempt."""
    hosts = str(parameters.get("host", "")).count(",") + 1
    return hosts * (float(parameters.get("connect_timeout") or 0) or _LONGEST)


@cache
def _libpq() -> ctypes.CDLL:
    """Return the libpq that psycopg2 uses: the loader also finds the symbols of a library's dependencies."""
    libpq = ctypes.CDLL(_psycopg.__file__)
    libpq.PQsetErrorVerbosity.argtypes = [ctypes.c_void_p, ctypes.c_int]
    libpq.PQsetErrorVerbosity.restype = ctypes.c_int
    return libpq
