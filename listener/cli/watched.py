"""What `watch` does: shows each committed change, the tasks it would fire, and why other routes do not fire."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from time import monotonic
from types import FrameType
from typing import Any, Final

from rich.text import Text

from cdc_tasks import logs
from cdc_tasks.changes import Change, EventType
from cdc_tasks.errors import CDCError
from cdc_tasks.routing.explained import Verdict, explain
from cdc_tasks.routing.router import BinlogRouter, RouteIndex
from listener.cli.given_change import GivenChangeError, no_such_table
from listener.cli.in_force import held_routes
from listener.cli.output import console
from listener.cli.row_filter import Condition, parse_condition, passes
from listener.cli.verdicts import (
    Describer,
    context_of,
    difference,
    local_time,
    message_of,
    names_of,
    printable,
)
from listener.core.existing_table import ExistingTable
from listener.core.findings import CloseNames
from listener.core.publisher import StoppedError
from listener.core.retry import Retry
from listener.core.source import SourceLostError
from listener.core.tail import Tail
from listener.daemon.application import celery_app, router_for
from listener.daemon.settings import ListenerSettings, LogSettings, load
from listener.daemon.wiring import make_tail, read_existing_tables

__all__ = ["watch_changes"]

_ASK_EVERY: Final = 5.0  # seconds between two checks of what is paused
_ASK_AGAIN: Final = 60.0  # seconds until an unavailable broker is queried again
_ALL: Final = "*"

_Name = tuple[str, str]  # schema and table, or globs


def watch_changes(tables: Sequence[str], where: Sequence[str], *, as_json: bool, has_values: bool) -> None:
    """Show changes until Ctrl-C or SIGTERM. Raise CDCError if the database cannot be watched."""
    log_settings = load(LogSettings)
    logs.configure(json=log_settings.cdc_log_format == "json", level="warning")
    settings = load(ListenerSettings)
    router = router_for(settings)
    chosen = _Chosen.of(settings, router, tables, [parse_condition(each) for each in where])
    tail = make_tail(settings, router, chosen.selected(), chosen.exact)
    shown = _Shown(settings, router, as_json=as_json, has_values=has_values)
    try:
        _Watch(tail, chosen, shown).run()
    except BrokenPipeError:  # as with `| head`: there is no reader any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """Which changes to show."""

    names: tuple[_Name, ...]
    exact: tuple[_Name, ...]  # those that are not globs
    is_all: bool  # no table was named
    where: Sequence[Condition]

    @classmethod
    def of(
        cls,
        settings: ListenerSettings,
        router: BinlogRouter,
        tables: Sequence[str],
        where: Sequence[Condition],
    ) -> _Chosen:
        """Return the selection that the arguments name. Raise NoSuchTableError, GivenChangeError."""
        home, existing = read_existing_tables(settings)
        if not tables:
            schemas = dict.fromkeys([home, *(each.schema for each in router.routes), *_schemas(existing)])
            found = cls(names=tuple((each, _ALL) for each in schemas), exact=(), is_all=True, where=where)
        else:
            names = tuple(_with_schema(each, home) for each in tables)
            exact = tuple(each for each in names if not _is_glob(each))
            found = cls(names=names, exact=exact, is_all=False, where=where)
            _check_tables(exact, existing, router, home)
        _check_columns(found, existing)
        return found

    def selected(self) -> BinlogRouter:
        """Return a router whose routes show the source which tables to read."""
        router = BinlogRouter()
        for schema, table in self.names:
            router.register(schema, table, EventType.ALL, "watch", even_muted=True)
        return router

    def has(self, change: Change) -> bool:
        """Return whether the change is selected. An enqueued task has no table and no row."""
        if change.event is EventType.ENQUEUED:
            return self.is_all and not self.where
        if not self.is_all and not self.covers((change.schema, change.table)):
            return False
        try:
            return passes(change, self.where)
        except CDCError:  # the row cannot be read: show it to be safe
            return True

    def covers(self, table: _Name) -> bool:
        """Return whether the table is selected."""
        return any(
            fnmatchcase(table[0], schema) and fnmatchcase(table[1], name) for schema, name in self.names
        )


def _schemas(existing: Sequence[ExistingTable]) -> list[str]:
    return [each.schema for each in existing]


def _with_schema(text: str, home: str) -> _Name:
    schema, dot, name = text.partition(".")
    return (schema, name) if dot else (home, text)


def _is_glob(name: _Name) -> bool:
    return not set("*?[").isdisjoint("".join(name))


def _check_tables(
    names: Sequence[_Name], existing: Sequence[ExistingTable], router: BinlogRouter, home: str
) -> None:
    known = {(each.schema, each.name) for each in existing}
    for name in names:
        # Tables of another MySQL database are unknown; partitions and tables of extensions are not listed.
        is_asked = name[0] in {home, *_schemas(existing)}
        if name not in known and is_asked and name not in {(r.schema, r.table) for r in router.routes}:
            raise no_such_table(name, existing, router)


def _check_columns(chosen: _Chosen, existing: Sequence[ExistingTable]) -> None:
    covered = [each for each in existing if chosen.covers((each.schema, each.name))]
    columns = {column for each in covered for column in each.columns}
    for condition in chosen.where if covered else ():
        if condition.column not in columns:
            raise GivenChangeError(
                f"No watched table has a column {condition.column}."
                f"{CloseNames(sorted(columns)).meant(condition.column)}",
                hint="Name a column of the table in --where: COLUMN=VALUE.",
                code="no_such_column",
            )


class _Watch:
    """Reads until it is stopped, even across a restart of the server."""

    def __init__(self, tail: Tail, chosen: _Chosen, shown: _Shown) -> None:
        self._tail, self._chosen, self._shown = tail, chosen, shown
        self._retry = Retry("database", on=SourceLostError, event="source_is_away", shortest=0.2, longest=5.0)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def run(self) -> None:
        """Show changes until `stop`; raises CDCError."""
        try:
            self._first_open()
            while not self._retry.is_stopped:
                self._show_all()
        except StoppedError:
            pass
        finally:
            self._tail.close()

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
        self._retry.stop()
        self._tail.stop()

    def _first_open(self) -> None:
        try:
            self._tail.open()
        except SourceLostError:
            if self._retry.is_stopped:
                raise StoppedError from None
            raise
        unseen = [each for each in self._tail.unseen if self._chosen.covers(each)]
        self._shown.begin(self._tail, unseen)

    def _show_all(self) -> None:
        try:
            for changes in self._tail.changes():
                self._shown.changes([each for each in changes if self._chosen.has(each)])
        except SourceLostError:
            self._shown.note("The connection to the database was lost.")
            self._retry.call(self._tail.open)
            missed = "Changes committed meanwhile are not shown." if self._tail.misses_changes else ""
            self._shown.note(f"Reading again. {missed}".strip())


class _Shown:
    """Writes changes to standard output, and notes to standard error."""

    def __init__(
        self, settings: ListenerSettings, router: BinlogRouter, *, as_json: bool, has_values: bool
    ) -> None:
        self._settings, self._router, self._as_json, self._has_values = settings, router, as_json, has_values
        self._describer = Describer(app=celery_app(settings), has_values=has_values)
        self._index = RouteIndex(router.routes)
        self._screen = console()
        self._ask_at = 0.0
        self._notes: list[str] = []

    def begin(self, tail: Tail, unseen: Sequence[_Name]) -> None:
        """Write what is read, and which tables send no changes."""
        self.note(f"Watching {tail.reads_by}. Nothing is sent. Ctrl-C ends it.")
        if unseen:
            self.note(f"The server does not send changes of {names_of(unseen)}: see docs/watch.md.")

    def note(self, text: str) -> None:
        """Write a note."""
        print(printable(text), file=sys.stderr, flush=True)  # noqa: T201 - a command's words

    def changes(self, changes: Sequence[Change]) -> None:
        """Write these changes, and what they would fire."""
        if not changes:
            return
        self._look_at_what_is_held()
        for change in changes:
            verdicts = list(explain(self._router, change, self._index.watching(change.schema, change.table)))
            if self._as_json:
                sys.stdout.write(f"{json.dumps(self._object(change, verdicts), default=str)}\n")
            else:
                for line in self._lines(change, verdicts):
                    self._screen.print(line, soft_wrap=True)
        sys.stdout.flush()

    def _look_at_what_is_held(self) -> None:
        if monotonic() < self._ask_at:
            return
        self._describer.held, notes = held_routes(self._settings, self._router)
        self._ask_at = monotonic() + (_ASK_AGAIN if notes else _ASK_EVERY)
        for each in notes if notes != self._notes else ():
            self.note(each)
        self._notes = notes

    # --- One change -----------------------------------------------------------------------------------------

    def _object(self, change: Change, verdicts: Sequence[Verdict]) -> dict[str, Any]:
        return {
            "change": message_of(change, has_values=self._has_values),
            "muted": change.is_muted,
            "routes": [self._describer.as_object(each) for each in verdicts],
        }

    def _lines(self, change: Change, verdicts: Sequence[Verdict]) -> Iterator[Text]:
        name = change.table if change.event is EventType.ENQUEUED else f"{change.schema}.{change.table}"
        line = Text(f"{local_time(change.committed_at)} ", "dim").append(printable(name), "bold not dim")
        line.append(f" {change.event.value}", "cyan not dim")
        if change.is_muted:
            line.append(" muted", "yellow not dim")
        yield line.append(f"  {printable(change.id)}")
        for told in (self._told(change), context_of(change, has_values=self._has_values)):
            if told:
                yield Text(f"  {told}")
        for verdict in verdicts:
            yield from self._describer.as_lines(verdict)
        if not verdicts:
            yield Text("  no route is for this table", "dim")

    def _told(self, change: Change) -> str:
        try:
            return difference(change, has_values=self._has_values)
        except CDCError as error:
            return f"the row could not be read: {printable(error.message)}"
