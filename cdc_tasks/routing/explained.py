"""Which routes a change fires, which it does not, and which line of the routes decided it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from cdc_tasks.changes import Change, EventType
from cdc_tasks.routing.enqueued import (
    EnqueuedTask,
    TaskNotAcceptedError,
    check_accepted,
    enqueued_route,
    prefix_of,
)
from cdc_tasks.routing.predicates import ReadyMade
from cdc_tasks.routing.route import Call, Parked, Route
from cdc_tasks.routing.router import BinlogRouter
from cdc_tasks.source_lines import called_with_line, place_of_error, place_of_function, shown_place

__all__ = ["Outcome", "Verdict", "explain"]


class Outcome(StrEnum):
    """What a change does to a route."""

    FIRES = "fires"
    PARKS = "parks"  # it would fire, but a function of the route fails: the change is kept
    WHEN = "when"  # its `when` is false
    EVENT = "event"  # it is for other events
    TABLE = "table"  # it is for other tables
    MUTED = "muted"  # the transaction mutes its changes


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a change does to one route, and why."""

    route: Route
    outcome: Outcome
    reason: str  # in words, without values of the row; empty if there is nothing to say
    place: str  # the file and line that decided it; empty if unknown
    call: Call | None = None  # what it fires
    error: Exception | None = None  # why it would be parked; its text may contain values of the row


def explain(router: BinlogRouter, change: Change, routes: Sequence[Route] | None = None) -> Iterator[Verdict]:
    """Yield what the change does to each of these routes (None: all), in their order; for an enqueued task, its own.

    It repeats the work of `BinlogRouter.tasks_for`, slowly. It raises nothing: errors of a route's functions are in
    the verdicts.
    """
    if change.event is EventType.ENQUEUED:
        yield _enqueued(router, change)
        return
    for route in router.routes if routes is None else routes:
        yield _passed_over(route, change) or _judged(route, change)


def _passed_over(route: Route, change: Change) -> Verdict | None:
    """Return why the route skips the change before `when`; None if it does not."""
    where = shown_place(route.place)
    if not route.matches(change.schema, change.table):
        reason = f"it is for {route.schema}.{route.table}"
        return Verdict(route=route, outcome=Outcome.TABLE, reason=reason, place=where)
    if change.event not in route.events:
        reason = f"it is for {', '.join(each.value for each in EventType if each in route.events)}"
        return Verdict(route=route, outcome=Outcome.EVENT, reason=reason, place=where)
    if change.is_muted and not route.even_muted:
        reason = "its transaction mutes the change, and the route has no even_muted=True"
        return Verdict(route=route, outcome=Outcome.MUTED, reason=reason, place=where)
    return None


def _judged(route: Route, change: Change) -> Verdict:
    """Return the result of `when`, then of the route's other functions, for the change."""
    reason, where = "", shown_place(route.place)
    if route.when is not None:
        try:
            is_wanted, line = called_with_line(route.when, change)
        except Exception as error:  # noqa: BLE001 - a user's code may raise anything
            return _parks(route, error, "when= fails", place_of_function(route.when))
        reason, where = _because(route.when, change), line or where
        if not is_wanted:
            return Verdict(route=route, outcome=Outcome.WHEN, reason=reason, place=where)
    fired = _fired(route, change)
    if isinstance(fired, Parked):
        return _parks(route, fired.error, "args=, kwargs= or key= fails")
    return Verdict(route=route, outcome=Outcome.FIRES, reason=reason, place=where, call=fired)


def _because(when: Any, change: Change) -> str:
    """Return the explanation of a ready-made condition; empty if it has none."""
    return when.because(change) if isinstance(when, ReadyMade) else ""


def _fired(route: Route, change: Change) -> Call | Parked:
    """Return what the router makes of a change whose `when` is true."""
    alone = BinlogRouter().for_replay([replace(route, when=None)], "explained")
    (fired,) = alone.tasks_for([change])
    return fired._replace(route=route)


def _parks(route: Route, error: Exception, what: str, where: str = "") -> Verdict:
    return Verdict(
        route=route,
        outcome=Outcome.PARKS,
        reason=f"{what}: {type(error).__name__}",
        place=place_of_error(error) or where or shown_place(route.place),
        error=error,
    )


def _enqueued(router: BinlogRouter, change: Any) -> Verdict:
    alone: list[Any] = [change]
    if not isinstance(change, EnqueuedTask):
        return _enqueued_before(router, change)
    (fired,) = router.tasks_for(alone)
    if isinstance(fired, Parked):
        reason = (
            "no route accepts it"
            if isinstance(fired.error, TaskNotAcceptedError)
            else "it does not make a valid task"
        )
        return Verdict(route=fired.route, outcome=Outcome.PARKS, reason=reason, place="", error=fired.error)
    return Verdict(route=fired.route, outcome=Outcome.FIRES, reason="", place="", call=fired)


def _enqueued_before(router: BinlogRouter, change: Change) -> Verdict:
    """Return whether a route accepts a parked task, whose message no longer exists."""
    route = enqueued_route(change.kind)
    try:
        check_accepted(route.task, prefix_of(change.kind), router.accepted)
    except TaskNotAcceptedError as error:
        return Verdict(
            route=route, outcome=Outcome.PARKS, reason="no route accepts it", place="", error=error
        )
    return Verdict(route=route, outcome=Outcome.FIRES, reason="a route accepts it", place="")
