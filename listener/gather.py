"""Coalescing and batching: which messages a batch of fired routes becomes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from cdc_tasks.changes import Change
from listener.router import Call, Parked, Route

__all__ = ["Task", "group"]


class Task(NamedTuple):
    """One message to be: what a route fired, coalesced or batched."""

    route: Route
    change: Change  # names it; the last one that a coalesced task stands for, the first one of a batch
    arguments: bytes  # JSON of its positional arguments, without the list's brackets

    @property
    def id(self) -> str:
        """The task's id: from the change's and the route, so that a replayed task has the id it had."""
        return f"{self.change.id}-{self.route.key}"


def group(fired: Iterable[Call | Parked]) -> tuple[list[Task], list[Parked]]:
    """Coalesce and batch what is published together; returns the tasks in the order in which each is complete."""
    tasks: list[Task] = []
    parked: list[Parked] = []
    coalesced: dict[tuple[str, bytes], Call] = {}
    batches: dict[str, list[Call]] = {}
    for each in fired:
        if isinstance(each, Parked):
            parked.append(each)
        elif each.route.coalesce:
            key = each.route.key, each.arguments
            coalesced.pop(key, None)
            coalesced[key] = each
        elif each.route.batch is not None:
            batch = batches.setdefault(each.route.key, [])
            batch.append(each)
            if len(batch) == each.route.batch:
                tasks.append(_batched(batches.pop(each.route.key)))
        else:
            tasks.append(Task(*each))
    tasks.extend(_batched(batch) for batch in batches.values())
    tasks.extend(Task(*call) for call in coalesced.values())
    return tasks, parked


def _batched(calls: list[Call]) -> Task:
    first = calls[0]
    items = [call.arguments if call.route.args is None else b"[%b]" % call.arguments for call in calls]
    return Task(first.route, first.change, b"[%b]" % b",".join(items))
