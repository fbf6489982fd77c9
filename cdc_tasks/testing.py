"""For tests of your routes: a change without a database, and what it fires without a broker.

def test_closing_a_ticket_tells_its_author():
    change = row_change("tickets", "update", before={"status": "open"}, after={"status": "closed"})
    assert_fires(setup_router(), change, "myapp.tell_author")
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import count
from typing import Any, Protocol

from cdc_tasks.changes import Change, EventType, RowChange
from cdc_tasks.words import counted

__all__ = ["assert_fires", "assert_fires_nothing", "row_change"]

_numbers = count(1)


class _Router(Protocol):
    """What is used of a `cdc_tasks.routing.router.BinlogRouter`."""

    def tasks_for(self, changes: Iterable[Change]) -> Iterable[Any]: ...


def row_change(
    table: str,
    event: EventType | str,
    *,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    schema: str = "public",
    unavailable: Sequence[str] = (),
    committed_at: datetime | None = None,
) -> RowChange:
    """Return a change as the listener would. Each has its own id, and a position after the one before.

    Raises ValueError if the rows do not fit the event: an insert has no `before`, a delete has no `after`, an update
    has an `after`, a truncate has neither.
    """
    kind = EventType(event)
    _check_rows(kind, before, after)
    number = next(_numbers)
    return RowChange(
        id=f"test-{number:X}-0",
        schema=schema,
        table=table,
        event=kind,
        before=before,
        after=after,
        unavailable=tuple(unavailable),
        position=f"0/{number * 8:X}:0",
        committed_at=committed_at or datetime.now(UTC),
    )


def assert_fires(
    router: _Router, change: Change, task: str, *, args: Sequence[Any] | None = None, times: int = 1
) -> None:
    """Raise AssertionError, with what did fire, unless `change` fires `task` this many `times`.

    With `args`, only calls with these positional arguments count.
    """
    fired = list(router.tasks_for([change]))
    calls = [each for each in fired if each.route.task == task and _is_call(each)]
    if args is not None:
        calls = [each for each in calls if _arguments(each) == list(args)]
    if len(calls) != times:
        wanted = task if args is None else f"{task}{_shown(list(args))}"
        raise AssertionError(
            f"{_title(change)} fires {wanted} {counted(len(calls), 'time')}, not {times}. {_described(fired)}"
        )


def assert_fires_nothing(router: _Router, change: Change) -> None:
    """Raise AssertionError, with what did fire, if `change` fires any task."""
    fired = list(router.tasks_for([change]))
    if fired:
        raise AssertionError(f"{_title(change)} should not fire anything. {_described(fired)}")


def _check_rows(event: EventType, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> None:
    if event is EventType.ALL:
        raise ValueError("event=all is for routes; a change is an insert, an update, a delete or a truncate")
    if before is not None and event in {EventType.INSERT, EventType.TRUNCATE}:
        raise ValueError(f"before={before!r}: {event} has no row before")
    if after is not None and event in {EventType.DELETE, EventType.TRUNCATE}:
        raise ValueError(f"after={after!r}: {event} has no row after")
    if after is None and event in {EventType.INSERT, EventType.UPDATE}:
        raise ValueError(f"after=None: {event} has a row after")


def _title(change: Change) -> str:
    return f"{change.event.value} on {change.schema}.{change.table}"


def _described(fired: Sequence[Any]) -> str:
    if not fired:
        return "Nothing fired: no route matches, or its `when` returned false."
    lines = [
        f"{each.route.task}{_shown(_arguments(each))}"
        if _is_call(each)
        else f"{each.route.task}: parked, because of {each.error!r}"
        for each in fired
    ]
    return "What fired:\n" + "\n".join(f"  {line}" for line in lines)


def _is_call(fired: Any) -> bool:
    return hasattr(fired, "arguments")


def _arguments(call: Any) -> list[Any]:
    arguments: list[Any] = json.loads(b"[%b]" % call.arguments)
    return arguments


def _shown(arguments: Sequence[Any]) -> str:
    return f"({', '.join(map(repr, arguments))})"
