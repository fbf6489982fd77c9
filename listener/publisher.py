"""What handing tasks to a broker promises, and what stands between the router and the broker's messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from cdc_tasks.changes import Change
from cdc_tasks.errors import CDCError
from listener.router import Call, Parked, Route

__all__ = ["BrokerError", "CheckpointMoved", "NotDurable", "Publisher", "Stopped", "Task", "group"]


class BrokerError(CDCError):
    """The broker cannot be used as it is; a person has to mend it."""


class CheckpointMoved(CDCError):
    """Somebody else moved the checkpoint: another listener is publishing under the same CDC_NAME."""


class NotDurable(CDCError):
    """The broker has the batch in memory, and not yet where CDC_DURABILITY wants it."""


class Stopped(Exception):  # noqa: N818 - not an error: a person asked for it
    """The listener was told to stop while it waited for the broker; nothing was acknowledged."""


class Publisher(Protocol):
    """Hands tasks to the broker and keeps the checkpoint.

    `publish` returns only once the broker holds all of them together with the checkpoint; it waits out a
    broker that is away, full or slow, and raises BrokerError only where waiting cannot help, CheckpointMoved
    where another listener took over, Stopped after `stop`. On Redis it is one atomic step.
    """

    def checkpoint(self, source: str | None = None) -> str | None:
        """Return the last position whose tasks the broker holds; None before the first.

        `source` is to be given before the first `publish`; raises BrokerError where the checkpoint is that of
        another database.
        """

    def publish(self, fired: Iterable[Call | Parked], *, checkpoint: str) -> None:
        """Make the broker hold these tasks, the parked changes, and the checkpoint."""

    def stop(self) -> None:
        """Make a waiting `publish` raise Stopped soon; may be called from a signal handler."""

    def close(self) -> None:
        """Let go of the broker."""


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
