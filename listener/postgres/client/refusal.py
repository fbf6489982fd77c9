"""Why the server refused a session, by SQLSTATE.

libpq gives the SQLSTATE of a refusal only in its verbose error text, and psycopg2 cannot ask for that text before
it connects. So after a refusal libpq connects once more, verbose: it knows hosts, sockets, TLS and passwords.
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

__all__ = ["CONNECTING", "Refusal", "find_refusal", "time_limit", "words_of"]

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


def words_of(error: psycopg2.Error | UnicodeDecodeError) -> str:
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
        return _parse(words_of(error), needs_password=bool(session.info.needs_password))
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
