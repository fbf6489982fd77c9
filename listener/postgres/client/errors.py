"""What PostgreSQL's errors mean for an operator, each with the command that mends it.

The server's errors are known by SQLSTATE (manual, appendix A): its words are in its own language. What one SQLSTATE
means for a slot depends on the server's state, which `diagnosis` asks for.
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
    """The role may not do this."""


class SlotInUseError(SourceLostError):
    """Another session reads from the replication slot."""


class LockNotAvailableError(SourceLostError):
    """Another session holds a lock that this one needs."""


class TooManyConnectionsError(SourceLostError):
    """The server has no room for one more session now."""


class NotAcceptingError(SourceLostError):
    """The server is starting up or shutting down."""


_TAKES_OVER: Final = (
    "Another listener reads from it; this one takes over when that one ends. If it is to be a different "
    "one, give it a CDC_NAME of its own."
)

_Meaning = tuple[type[CDCError], str]  # the error, and the hint, which may name {role} and {database}

# In a session.
_MEANINGS: Final[Mapping[str, _Meaning]] = {
    "25006": (SourceLostError, PRIMARY),  # read-only: sessions are pinned to read-write, so it is a standby
    "42501": (PermissionDeniedError, "Let the owner, or a superuser, do it."),
    "55006": (SlotInUseError, _TAKES_OVER),
    "55P03": (
        LockNotAvailableError,
        "Who holds a table: SELECT pid, query FROM pg_stat_activity WHERE state <> 'idle';",
    ),
}

# Of a session that the server refused.
_REFUSALS: Final[Mapping[str, _Meaning]] = {
    "28P01": (SourceError, AUTHENTICATION),
    "28000": (SourceError, PG_HBA),
    "3D000": (SourceError, DATABASE),
    "55000": (SourceError, "ALTER DATABASE {database} ALLOW_CONNECTIONS true;"),
    "53300": (TooManyConnectionsError, CONNECTIONS),
    "57P03": (NotAcceptingError, "It is starting up or shutting down; the listener tries again."),
    "42704": (
        SourceError,
        "Correct the options in DATABASE_URL.",
    ),  # a parameter that the server does not know
    "22023": (SourceError, "Correct the options in DATABASE_URL."),  # a value that it does not take
}

# The same SQLSTATE, by the function in the server's source that refused: PostgreSQL's own since version 9.
_REFUSING: Final[Mapping[str, _Meaning]] = {
    "InitializeSessionUserId": (SourceError, LOGIN),
    "auth_failed": (SourceError, AUTHENTICATION),
    "CheckMyDatabase": (PermissionDeniedError, "GRANT CONNECT ON DATABASE {database} TO {role};"),
}
_BY_ROUTINE: Final = frozenset({"28000", "42501"})

# What libpq says itself, in the language of this process: English, as the listener sets no other. So does OpenSSL.
_LIBPQ: Final = (
    (re.compile(r"does not support SSL"), TLS_OFF),
    (re.compile(r"certificate|SSL error: (?!unexpected eof)"), TLS),
    (
        re.compile(
            r"invalid (?!response)|definition of service|channel binding|authentication method requirement"
        ),
        "Correct that part of DATABASE_URL.",
    ),
)

# After these the same may work again: connection, resources, operator, locks.
_TEMPORARY: Final = re.compile(r"08...|53...|57...|40...|55P03|58030")


def translate(error: psycopg2.Error, parameters: Mapping[str, Any]) -> CDCError:
    """Return a session's error in our words; `parameters` are libpq's, with nothing secret taken from them."""
    text = _primary(error)
    if meaning := _MEANINGS.get(error.pgcode or ""):
        kind, hint = meaning
        return kind(text, hint=hint.format(**_named(parameters)))
    if _is_temporary(error):
        return SourceLostError(text)
    # The server's hints know nothing of us: "Specify another replication slot." would lose what ours holds.
    return SourceError(text, hint=None if error.pgcode == "55000" else error.diag.message_hint)


def refused(words: str, refusal: Refusal | None, parameters: Mapping[str, Any]) -> CDCError:
    """Return in our words why there is no session; without a refusal the server takes one by now.

    `words` are those of the first attempt, which name each host.
    """
    text = _line(words, refusal)
    if refusal is None:
        return SourceLostError(text)
    if refusal.sqlstate is None:
        return _without_server(text, refusal, parameters)
    kind, hint = _refusal(refusal, parameters)
    return kind(text, hint=hint.format(**_named(parameters)) if hint else None)


def sqlstate_of(error: BaseException) -> str | None:
    """Return the SQLSTATE of the driver's error that `error` was made of."""
    cause = error.__cause__
    return cause.pgcode if isinstance(cause, psycopg2.Error) else None


def _refusal(refusal: Refusal, parameters: Mapping[str, Any]) -> tuple[type[CDCError], str | None]:
    sqlstate, routine = refusal.sqlstate or "", refusal.routine or ""
    replicates = "replication" in parameters
    if sqlstate in _BY_ROUTINE and routine in _REFUSING:
        return _REFUSING[routine]
    if sqlstate == "42501" and replicates:
        return PermissionDeniedError, REPLICATION
    if sqlstate == "53300" and replicates and routine != "InitializeSessionUserId":
        return TooManyConnectionsError, SENDERS
    if (
        sqlstate == "08P01" and "unsupported startup parameter" in refusal.text
    ):  # PgBouncer speaks English only
        return SourceError, POOLER
    if meaning := _REFUSALS.get(sqlstate):
        return meaning
    return (SourceLostError if _TEMPORARY.fullmatch(sqlstate) else SourceError), None


def _without_server(text: str, refusal: Refusal, parameters: Mapping[str, Any]) -> CDCError:
    if refusal.needs_password:
        return SourceError(text, hint=AUTHENTICATION.format(**_named(parameters)))
    for words, hint in _LIBPQ:
        if words.search(refusal.text):
            return SourceError(text, hint=hint)
    if parameters.get("target_session_attrs", "any") != "any":  # a failover may be on its way
        return SourceLostError(text, hint=f"{NOT_LOCAL} {PRIMARY}")
    return SourceLostError(text, hint=NOT_LOCAL)


def _is_temporary(error: psycopg2.Error) -> bool:
    if error.pgcode:
        return _TEMPORARY.fullmatch(error.pgcode) is not None
    return isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError) or (
        type(error)
        is psycopg2.DatabaseError  # what it makes of a broken connection that libpq has no words for
    )


def _primary(error: psycopg2.Error) -> str:
    if error.diag.message_primary:
        detail = error.diag.message_detail
        return f"PostgreSQL: {error.diag.message_primary}" + (f" ({detail})" if detail else "")
    return f"PostgreSQL: {(_lines(str(error)) or [type(error).__name__])[0]}"


def _line(words: str, refusal: Refusal | None) -> str:
    """Return the line that tells why, with the host: each host has its own."""
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


_LONGEST: Final = 60.0  # seconds for each host where connect_timeout is 0, which means forever


# FATAL:  28P01: password authentication failed …; LOCATION:  auth_failed, auth.c:317. The first word is translated.
_ERROR: Final = re.compile(r"^(?:.*?):  ([0-9A-Z]{5}): (.*)$", re.MULTILINE)


_LOCATION: Final = re.compile(r"^\S.*?:  (\w+), \S+:\d+$", re.MULTILINE)


# What psycopg2 raises while it connects. A server speaks in the encoding of its locale until a session has another.
CONNECTING: Final = (psycopg2.Error, UnicodeDecodeError)


class Refusal(NamedTuple):
    """Why there is no session: what a server answered, or what libpq met before a server did."""

    text: str  # the server's message, in its language, or libpq's
    sqlstate: str | None = None  # None: no server refused
    routine: str | None = None  # the function in PostgreSQL's source that refused: the same in each language
    needs_password: bool = False


def error_text(error: psycopg2.Error | UnicodeDecodeError) -> str:
    """Return what libpq or the server said."""
    if isinstance(error, UnicodeDecodeError):
        return error.object.decode(errors="backslashreplace")
    return str(error)


def find_refusal(parameters: Mapping[str, Any]) -> Refusal | None:
    """Connect with libpq's parameters, and return why that fails; None where the server takes the session."""
    try:
        session: connection = psycopg2.connect(**parameters, async_=True)
    except (
        psycopg2.Error
    ) as error:  # before the first byte: a name that has no address, a value that libpq refuses
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
    """Return the last server's refusal: libpq goes on to the next host only where that may help."""
    errors = list(_ERROR.finditer(text))
    if not errors:
        return Refusal(text, needs_password=needs_password)
    last = errors[-1]
    location = _LOCATION.search(text, last.end())
    return Refusal(last[2], last[1], location[1] if location else None, needs_password)


def time_limit(parameters: Mapping[str, Any]) -> float:
    """Return how many seconds a connection may take until libpq gives up."""
    hosts = str(parameters.get("host", "")).count(",") + 1
    return hosts * (float(parameters.get("connect_timeout") or 0) or _LONGEST)


@cache
def _libpq() -> ctypes.CDLL:
    """Return the libpq that psycopg2 uses: a symbol is looked for in what a library depends on, too."""
    libpq = ctypes.CDLL(_psycopg.__file__)
    libpq.PQsetErrorVerbosity.argtypes = [ctypes.c_void_p, ctypes.c_int]
    libpq.PQsetErrorVerbosity.restype = ctypes.c_int
    return libpq
