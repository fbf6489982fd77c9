"""What `explain` shows: the change, and what it does to each route."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rich.text import Text

from cdc_tasks.command_line import print_json
from cdc_tasks.errors import CDCError
from cdc_tasks.routing.arguments import named_columns
from cdc_tasks.routing.explained import Outcome, Verdict, explain
from cdc_tasks.routing.keys import ColumnKey
from cdc_tasks.routing.router import BinlogRouter, Route
from cdc_tasks.words import counted
from listener.cli.found_change import find_change
from listener.cli.given_change import Given, given_change
from listener.cli.in_force import held_routes
from listener.cli.output import console
from listener.cli.verdicts import Describer, context_of, difference, local_time, message_of, printable
from listener.daemon.application import celery_app, router_for
from listener.daemon.settings import ListenerSettings, load

__all__ = ["explain_found", "explain_given"]

_ELSEWHERE: Final = 5  # tables of other routes to name


@dataclass(kw_only=True)
class _Explained:
    """A verdict, and the columns that it needs and the given row lacks."""

    verdict: Verdict
    lacking: tuple[str, ...]


def explain_given(table: str, event: str, before: str | None, after: str | None, *, as_json: bool) -> None:
    """Explain a described change."""
    settings = load(ListenerSettings)
    router = router_for(settings)
    given = given_change(settings, router, (table, event), before, after)
    _show(settings, router, given, "", as_json=as_json)


def explain_found(change_id: str, *, as_json: bool) -> None:
    """Explain a stored change."""
    settings = load(ListenerSettings)
    router = router_for(settings)
    found = find_change(settings, router, change_id)
    given = Given(change=found.change, notes=list(found.notes))
    _show(settings, router, given, found.where, as_json=as_json)


def _show(
    settings: ListenerSettings, router: BinlogRouter, given: Given, where: str, *, as_json: bool
) -> None:
    held, notes = held_routes(settings, router)
    describer = Describer(app=celery_app(settings), held=held, has_ids=bool(where))
    explained = list(_explained(router, given))
    notes = [*given.notes, *notes]
    if as_json:
        routes = [{**describer.as_object(e.verdict), "lacking": list(e.lacking)} for e in explained]
        print_json(
            {
                "change": message_of(given.change, has_values=True),
                "found_in": where or None,
                "notes": notes,
                "routes": routes,
            }
        )
        return
    screen = console()
    for line in _lines(given, where, explained, describer):
        screen.print(line, soft_wrap=True)
    for note in notes:
        screen.print(Text(f"Note: {printable(note)}"), soft_wrap=True)


def _explained(router: BinlogRouter, given: Given) -> Iterator[_Explained]:
    given.lacking.clear()
    for verdict in explain(router, given.change):
        lacking = given.lacking | set(_named(verdict, given))
        given.lacking.clear()
        yield _Explained(verdict=verdict, lacking=tuple(sorted(lacking)))


def _named(verdict: Verdict, given: Given) -> Iterator[str]:
    """Yield the columns that `args`, `kwargs` and `key` name and the row lacks."""
    if verdict.outcome in {Outcome.FIRES, Outcome.PARKS} and given.change.id == "explained":
        route = verdict.route
        key = route.key.columns if isinstance(route.key, ColumnKey) else ()
        has = set(given.change.row)
        yield from (
            name for name in (*(named_columns(route.args, route.kwargs) or ()), *key) if name not in has
        )


def _lines(given: Given, where: str, explained: Sequence[_Explained], describer: Describer) -> Iterator[Text]:
    yield from _head(given, where)
    elsewhere: list[Route] = []
    for each in explained:
        if each.verdict.outcome is Outcome.TABLE:
            elsewhere.append(each.verdict.route)
            continue
        yield from describer.as_lines(each.verdict)
        if each.lacking:
            yield Text(f"    needs {', '.join(each.lacking)}, which the given row does not have", "yellow")
    if elsewhere:
        yield Text(f"  not {_others(elsewhere)}", "dim")
    fired = sum(each.verdict.outcome is Outcome.FIRES for each in explained)
    yield Text(f"It fires {counted(fired, 'task')}." if fired else "It fires nothing.", "bold")
    if len(elsewhere) == len(explained):
        yield Text(f"No route names {given.change.schema}.{given.change.table}: python -m listener routes")


def _head(given: Given, where: str) -> Iterator[Text]:
    change = given.change
    head = Text(printable(f"{change.schema}.{change.table}"), "bold").append(f" {change.event.value}", "cyan")
    if where:
        head.append(f"  {change.id}, committed at {local_time(change.committed_at)}, found in {where}", "dim")
    yield head
    try:
        told = difference(change, has_values=True)
    except CDCError as error:
        told = error.message
    yield Text(f"  {told}")
    if said := context_of(change, has_values=True):
        yield Text(f"  {said}")


def _others(routes: Sequence[Route]) -> str:
    tables = dict.fromkeys(f"{each.schema}.{each.table}" for each in routes)
    shown = ", ".join([*tables][:_ELSEWHERE]) + (", …" if len(tables) > _ELSEWHERE else "")
    return f"{counted(len(routes), 'route')} for other tables: {printable(shown)}"
