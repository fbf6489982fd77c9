"""Which change is the last one of its transaction: known once the transaction's end is read.

A batch may end anywhere in a transaction. Its last change then waits for the next batch: by then it is known whether
another one follows. Tasks that the transaction enqueues behind its last change wait with it, if they are not too many.
So the answer does not depend on where batches end, and is the same when the log is read again.
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
    """Note at the end of a transaction which change was its last one; call it when its last change is in `changes`."""
    if not changes:
        return
    last = changes[-1]
    if last.__class__ is not EnqueuedTask:
        last.commit.last = last.ordinal
    elif last.ordinal and (place := _last_change(changes)) is not None:
        changes[place].commit.last = changes[place].ordinal


def hold_back(changes: list[ChangeT], id_head: bytes) -> list[ChangeT]:
    """Take from a batch that ends within a transaction, and return, its last change and the tasks behind it.

    `id_head` is that of the transaction. Without a change of it there is nothing to hold back.
    """
    place = _last_change(changes)
    if place is None or changes[place].commit.id_head != id_head:  # type: ignore[attr-defined]  # of any source
        return []
    held = changes[place:]
    del changes[place:]
    return held


def _last_change(changes: Sequence[Any]) -> int | None:
    """Return the place of the last change of the transaction at the end; None if too many tasks are behind it."""
    room = _MOST_BEHIND
    for place in range(len(changes) - 1, -1, -1):
        each = changes[place]
        if room < 0 or each.commit.id_head != changes[-1].commit.id_head:
            return None
        if each.__class__ is not EnqueuedTask:
            return place
        room -= 1 + (len(each.arguments) + len(each.kwargs)) // _BYTES_OF_ONE
    return None
