"""The current actor: a request or a task. Its context is written before the first write of each of its transactions.

The values are computed only then: a request that only reads costs nothing, and by then it is known who is logged in.
A read never gets a context: on PostgreSQL that would turn a read-only transaction into a write.
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
    """The actor. Its values are computed when its first transaction writes."""

    def __init__(self, values: _Values) -> None:
        self._values = values

    def values(self) -> dict[str, Any]:
        """Return the context of its transactions; empty: none. The application's function may raise anything."""
        return {name: value for name, value in (self._values() or {}).items() if value is not None}


_actor: ContextVar[Actor | None] = ContextVar("cdc_tasks_actor", default=None)


def begin(values: _Values) -> Token[Actor | None]:
    """Make these values the current actor's in this thread or asyncio task; return the token for `end`."""
    return _actor.set(Actor(values))


def end(token: Token[Actor | None]) -> None:
    """Remove the current actor."""
    _actor.reset(token)


@contextmanager
def acting(values: _Values) -> Iterator[None]:
    """Make these values the current actor's in the block."""
    token = begin(values)
    try:
        yield
    finally:
        end(token)


def request_id_of(given: str | None) -> str:
    """Return the id that came with the request if it is valid, else a new one."""
    return given if given and _REQUEST_ID.fullmatch(given) else str(uuid4())


def say_before(statement: str, connection: Any, said: Actor | None) -> Actor | None:
    """Write the context if this statement is the first write of its transaction; return the actor who wrote it.

    `said` is the actor who wrote it earlier in this transaction. Errors are logged: an application's write never fails
    because of the context.
    """
    actor = _actor.get()
    if actor is None or actor is said or not writes(statement):
        return said
    token = _actor.set(None)  # statements that read the values or write the context need no context
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
    """Return whether a statement may write rows. A SELECT counts as a read, whatever its functions do."""
    match = _COMMENT.match(statement)
    found = _WORD.match(statement, match.end() if match else 0)
    word = found[0].upper() if found else ""
    if word == "WITH":
        return _WRITES_IN_WITH.search(statement) is not None
    return word not in _READS


def takes_back(statement: str) -> bool:
    """Return whether it rolls back to a savepoint, and so may undo the context."""
    return _BACK.match(statement) is not None
