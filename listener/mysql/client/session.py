"""One session for questions in between: opened when the first one comes, and opened again where it was lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from listener.core.source import SourceLost
from listener.mysql.client.connection import Connection, fetch

__all__ = ["Session"]


class Session:
    """Asks the server; a listener asks seldom, and then about many things in a row."""

    def __init__(self, connect: Callable[[], Connection[Any]]) -> None:
        self._connect = connect
        self._connection: Connection[Any] | None = None

    def fetch(self, query: str, arguments: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
        """Return the rows of a query that changes nothing; raises SourceError, SourceLost."""
        if self._connection is not None:
            try:
                return fetch(self._connection, query, arguments)
            except SourceLost:  # the server ends sessions that are idle for long
                self.close()
        self._connection = self._connect()
        return fetch(self._connection, query, arguments)

    def close(self) -> None:
        """End the session; the next question opens another."""
        if self._connection is not None:
            self._connection._force_close()  # type: ignore[attr-defined]  # noqa: SLF001 - says no goodbye, which could wait for an answer
            self._connection = None
