"""The changes of a table in the stream while a backfill reads a chunk of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final, Generic, TypeVar

__all__ = ["SeenChanges"]

_MOST: Final = 200_000  # changes to remember

ChangeT = TypeVar("ChangeT", bound=Any)


class SeenChanges(Generic[ChangeT]):
    """Keeps the changes of one table. The changed rows are compared only when a chunk gets its position."""

    def __init__(self) -> None:
        self._seen: list[Sequence[ChangeT]] = []
        self.is_torn = False  # there were more than `_MOST`

    def forget(self) -> None:
        """Start again with no changes."""
        self._seen, self.is_torn = [], False

    def note(self, changes: Sequence[ChangeT], table: tuple[str, str]) -> None:
        """Add the changes of the table, by schema and name."""
        mine = [change for change in changes if (change.schema, change.table) == table]
        if mine:
            self._seen.append(mine)
        if sum(map(len, self._seen)) > _MOST:
            self._seen, self.is_torn = [], True

    @property
    def has_truncate(self) -> bool:
        """Whether the table was truncated."""
        return any(change.kind[2] == "truncate" for changes in self._seen for change in changes)

    def keys(self, key_of: Callable[[ChangeT, Any], Hashable | None]) -> set[Hashable] | None:
        """Return the keys of the changed rows, before and after; None if a change does not have them.

        `key_of` returns the key of one row of a change, None if the row lacks it.
        """
        found = {key_of(change, row) for changes in self._seen for change in changes for row in change.rows}
        return None if None in found else found
