"""The listener's log at `debug`: each batch, and each of its changes with the tasks it fired; no row values."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any, Final

import structlog

from cdc_tasks.routing.router import Call, Parked
from listener.core.source import Batch

__all__ = ["told_at_debug"]

log = structlog.get_logger()

_ROOT: Final = logging.getLogger()  # it has the listener's level


def told_at_debug(fired: Iterable[Call | Parked], batch: Batch) -> Iterable[Call | Parked]:
    """Return the fired tasks unchanged; at `debug` also log them once published. Idle batches are not logged."""
    if not _ROOT.isEnabledFor(logging.DEBUG) or not (batch.changes or batch.chunk):
        return fired
    return _told(fired, batch)


def _told(fired: Iterable[Call | Parked], batch: Batch) -> Iterator[Call | Parked]:
    by_change: dict[int, tuple[Any, list[Call | Parked]]] = {id(each): (each, []) for each in batch.changes}
    for each in fired:
        by_change.setdefault(id(each.change), (each.change, []))[1].append(
            each
        )  # or it is a row of a backfill
        yield each
    for change, of_change in by_change.values():
        _log_change(change, of_change)
    tasks = [each for _, of_change in by_change.values() for each in of_change]
    parked = sum(isinstance(each, Parked) for each in tasks)
    log.debug(
        "batch",
        changes=len(batch.changes),
        tasks=len(tasks) - parked,
        parked=parked,
        position=batch.position,
        pipelined=batch.pipelined,
    )


def _log_change(change: Any, fired: list[Call | Parked]) -> None:
    schema, table, event = change.kind
    log.debug(
        "change",
        table=f"{schema}.{table}" if event != "enqueued" else table,
        change_event=event,
        change_id=change.id,
        position=change.position,
        fired=[each.route.task for each in fired if not isinstance(each, Parked)],
        parked=[each.route.task for each in fired if isinstance(each, Parked)],
    )
