"""The number of tasks that `coalesce=True` and `batch=` make from many changes."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TypedDict

from benchmarks.postgres_stage import PostgresStage
from benchmarks.routes import QUEUE

__all__ = ["Grouped", "group"]

_ROWS = 10_000

_ONE_BY_ONE = f"""
    DO $$
    BEGIN
      FOR i IN 1 .. {_ROWS} LOOP
        UPDATE tickets SET status = 'one by one' WHERE id = i;
        COMMIT;
      END LOOP;
    END $$
"""  # noqa: S608 - our own number


# The statements on a table with a coalescing route.
_UPDATES = {
    "coalesce, 1 transaction": "UPDATE tickets SET status = 'all at once'",
    f"coalesce, {_ROWS:,} transactions": _ONE_BY_ONE,
}


class Grouped(TypedDict):
    """Some changes, and the tasks for them."""

    changes: int
    seconds: float  # of writing
    tasks: int


def group(say: Callable[[str], None]) -> dict[str, Grouped]:
    """Measure 10,000 updates of one table with a coalescing route, and 100,000 inserts with `batch=500`."""
    found: dict[str, Grouped] = {}
    with PostgresStage() as stage:
        stage.fill("tickets", _ROWS, transaction=_ROWS)
        with stage.listener("coalesced") as listener:
            listener.wait_for("streaming")
            for name, statement in _UPDATES.items():
                found[name] = _count(stage, partial(stage.run, statement), _ROWS)
            listener.stop()
        with stage.listener("in_batches") as listener:
            listener.wait_for("streaming")
            rows = 10 * _ROWS
            found["batch=500"] = _count(stage, partial(stage.fill, "tickets", rows, transaction=1_000), rows)
            listener.stop()
    for name, each in found.items():
        say(f"{name}: {each['changes']:,} changes in {each['seconds']:.1f} s, {each['tasks']:,} tasks")
    return found


def _count(stage: PostgresStage, write: Callable[[], None], changes: int) -> Grouped:
    stage.broker.unlink(QUEUE)
    begun = time.monotonic()
    write()
    seconds = time.monotonic() - begun
    stage.wait_until_quiet()
    return {"changes": changes, "seconds": round(seconds, 2), "tasks": stage.queued()}
