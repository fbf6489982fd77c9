"""Which change is the last one of its transaction: known only at the transaction's end.

A batch may end anywhere in a transaction. Its last change then waits for the next batch: by then it is known whether
another one follows. Tasks that the transaction enqueues after its last change wait with it, up to a limit.
So the answer does not depend on where batches end: it is the same if the log is read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeVar

from cdc_tasks.routing.enqueued import EnqueuedTask

__all__ = ["hold_back", "note_last"]

ChangeT = TypeVar("ChangeT")

_MOST_BEHIND: Final = 100  # tasks, or
_BYTES_OF_ONE: Final = 10_000  # bytes of arguments for each of those


def note_last(changes: Sequence[Any]) -> None:
    """Note the last change of a transaction at its end; call it when that change is in `changes`."""
    if not changes:
        return
    last = changes[-1]
    if last.__class__ is not EnqueuedTask:
        last.commit.last = last.ordinal
    elif last.ordinal and (place := _last_change(changes)) is not None:
        changes[place].commit.last = changes[place].ordinal


def hold_back(changes: list[ChangeT], id_head: bytes) -> list[ChangeT]:
    """Remove the last change, and the tasks after it, from a batch that ends within a transaction; return them.

    `id_head` is that of the transaction. If the batch has no change of it, nothing is removed.
    """
    place = _last_change(changes)
    if place is None or changes[place].commit.id_head != id_head:  # type: ignore[attr-defined]  # of any source
        return []
    held = changes[place:]
    del changes[place:]
    return held


def _last_change(changes: Sequence[Any]) -> int | None:
    """Return the index of the transaction's last change at the end; None if too many tasks follow it."""
    room = _MOST_BEHIND
    for place in range(len(changes) - 1, -1, -1):
        each = changes[place]
        if room < 0 or each.commit.id_head != changes[-1].commit.id_head:
            return None
        if each.__class__ is not EnqueuedTask:
            return place
        room -= 1 + (len(each.arguments) + len(each.kwargs)) // _BYTES_OF_ONE
    return None
