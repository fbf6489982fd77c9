"""Who acts now: a request or a task. Before the first write of each of its transactions the context is written.

The values are asked for then, and not before: a request that only reads costs nothing, and by then it is known who is
logged in. A read is never preceded by a context: on PostgreSQL that would make a write of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import Any, Final
from uuid import uuid4

import structlog

from cdc_tasks.errors import CDCError
from cdc_tasks.outbox.context import context

__all__ = ["Actor", "acting", "begin", "end", "request_id_of", "say_before", "takes_back", "writes"]

log = structlog.get_logger()

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:+/=@-]{1,100}")
_COMMENT: Final = re.compile(r"(?:\s+|--[^\n]*(?:\n|$)|#[^\n]*(?:\n|$)|/\*.*?\*/|\()*", re.DOTALL)
_READS: Final = frozenset({
    "BEGIN", "CLOSE", "COMMIT", "DECLARE", "DESC", "DESCRIBE", "DISCARD", "EXPLAIN", "FETCH", "LISTEN", "MOVE",
    "PRAGMA", "RELEASE", "RESET", "ROLLBACK", "SAVEPOINT", "SELECT", "SET", "SHOW", "START", "TABLE", "UNLISTEN",
    "USE", "VALUES",
})  # fmt: skip
_WORD: Final = re.compile(r"[A-Za-z]+")
_WRITES_IN_WITH: Final = re.compile(r"\b(?:INSERT|UPDATE|DELETE|MERGE)\b", re.IGNORECASE)
_BACK: Final = re.compile(r"\s*ROLLBACK\s+(?:WORK\s+|TRANSACTION\s+)?TO\b", re.IGNORECASE)

_Values = Callable[[], Mapping[str, Any] | None]


class Actor:
    """What acts: its values are known when the first transaction writes."""

    def __init__(self, values: _Values) -> None:
        self._values = values

    def values(self) -> dict[str, Any]:
        """Return what its transactions say; empty: nothing. A function of the application's may raise anything."""
        return {name: value for name, value in (self._values() or {}).items() if value is not None}


_actor: ContextVar[Actor | None] = ContextVar("cdc_tasks_actor", default=None)


def begin(values: _Values) -> Token[Actor | None]:
    """Let what runs from here on in this thread or task act with these values; return what `end` needs."""
    return _actor.set(Actor(values))


def end(token: Token[Actor | None]) -> None:
    """Let nobody act any more."""
    _actor.reset(token)


@contextmanager
def acting(values: _Values) -> Iterator[None]:
    """Let the block act with these values."""
    token = begin(values)
    try:
        yield
    finally:
        end(token)


def request_id_of(given: str | None) -> str:
    """Return the id that a request brings along, if it is one, or a new one."""
    return given if given and _REQUEST_ID.fullmatch(given) else str(uuid4())


def say_before(statement: str, connection: Any, said: Actor | None) -> Actor | None:
    """Write the context if this statement is the first write of its transaction; return who has said it.

    `said` is who has said it before in this transaction. What goes wrong is logged: no write of the application's
    fails because of the context.
    """
    actor = _actor.get()
    if actor is None or actor is said or not writes(statement):
        return said
    token = _actor.set(None)  # what is read for the values, and the context itself, say nothing
    try:
        values = actor.values()
        if values:
            context(connection, **values)
    except CDCError as error:
        log.warning("context_not_written", code=error.code, error=error.message, hint=error.hint)
    finally:
        _actor.reset(token)
    return actor


def writes(statement: str) -> bool:
    """Return whether a statement may write rows. A SELECT does not, whatever its functions do."""
    match = _COMMENT.match(statement)
    found = _WORD.match(statement, match.end() if match else 0)
    word = found[0].upper() if found else ""
    if word == "WITH":
        return _WRITES_IN_WITH.search(statement) is not None
    return word not in _READS


def takes_back(statement: str) -> bool:
    """Return whether it rolls back to a savepoint, and what the transaction has said with it."""
    return _BACK.match(statement) is not None
