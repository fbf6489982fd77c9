"""Information on types that the log does not contain: read once from the server's catalogue, and cached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from listener.core.source import SourceLostError
from listener.postgres.client.connection import Connection, fetch
from listener.postgres.codec.builtin_types import BUILTIN, TypeKind, ValueType

__all__ = ["TypeCatalogue"]

_DEPENDENCIES: Final = """
WITH RECURSIVE needed AS (
    SELECT %s::oid AS oid
    UNION
    SELECT CASE WHEN typtype = 'd' THEN typbasetype ELSE typelem END
    FROM needed JOIN pg_catalog.pg_type USING (oid)
    WHERE typtype = 'd' OR typoutput = 'pg_catalog.array_out'::pg_catalog.regproc
)
SELECT oid::bigint, typtype::text, typbasetype::bigint, typelem::bigint, typdelim::text,
       typoutput = 'pg_catalog.array_out'::pg_catalog.regproc
FROM needed JOIN pg_catalog.pg_type USING (oid)
"""

_KINDS: Final[Mapping[str, TypeKind]] = {"c": "composite", "e": "enum", "r": "range", "m": "range"}


class _Row(NamedTuple):
    oid: int
    kind: str
    base: int
    element: int
    delimiter: str
    is_array: bool


class TypeCatalogue:
    """All types by OID: the built-in ones from a table in the code, the others from the server.

    The structure of a type never changes, so each type is read once. A type that has been dropped is
    "unknown": its values are the server's text.
    """

    def __init__(self, connect: Callable[[], Connection]) -> None:
        """`connect` opens an ordinary session; it is called for the first type to read, and the session stays open."""
        self._connect = connect
        self._session: Connection | None = None
        self._known = dict(BUILTIN)

    def resolve(self, oid: int) -> ValueType:
        """Return the type. Raise SourceError, SourceLostError."""
        known = self._known.get(oid)
        return known or self._build(oid, self._ask(oid))

    def close(self) -> None:
        """Close the session; safe to call twice."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _ask(self, oid: int) -> dict[int, _Row]:
        return {row.oid: row for row in map(_Row._make, self._fetch(oid))}

    def _fetch(self, oid: int) -> list[tuple[Any, ...]]:
        if self._session is not None:
            try:
                return fetch(self._session, _DEPENDENCIES, [oid])
            except SourceLostError:
                self.close()  # closed while idle
        self._session = self._connect()
        return fetch(self._session, _DEPENDENCIES, [oid])

    def _build(self, oid: int, rows: Mapping[int, _Row]) -> ValueType:
        """Return the type, and cache it with its component types."""
        if oid in self._known:
            return self._known[oid]
        row = rows.get(oid)
        if row is None:
            value_type = ValueType(oid, "unknown")
        elif row.kind == "d":
            value_type = ValueType(oid, "domain", self._build(row.base, rows))
        elif row.is_array:
            value_type = ValueType(oid, "array", self._build(row.element, rows), row.delimiter.encode())
        else:
            value_type = ValueType(oid, _KINDS.get(row.kind, "base"))
        return self._known.setdefault(oid, value_type)
