"""Whether the tables are as the routes need them: pure, no I/O."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from difflib import get_close_matches
from typing import Final

from cdc_tasks.changes import EventType
from listener.findings import CloseNames, Finding, State
from listener.postgres.catalogue import Identity, Table, TableName
from listener.postgres.identifiers import quoted, quoted_table
from listener.postgres.watched import Watched, is_glob, watched_tables
from listener.router import Route, RouteIndex

__all__ = ["find_in_tables"]

_NEED_A_KEY: Final = {EventType.UPDATE, EventType.DELETE}

_KINDS: Final = {"v": "view", "m": "materialized view", "f": "foreign table"}


def find_in_tables(
    routes: Sequence[Route], tables: Sequence[Table], known: Collection[TableName], version: int
) -> Iterator[Finding]:
    """Yield what is wrong or doubtful about the tables of the routes, and a line for each that is well.

    `tables` are those of the routes, `known` the names of all there are; `version` as libpq has it (150004).
    """
    by_name = {table.name: table for table in tables}
    matching = _matching(routes, tables)
    close = CloseNames(".".join(name) for name in known)
    for route in dict.fromkeys(routes):
        yield from _find_in_route(route, matching.get(route.key, ()), by_name, close, version)
    watched = watched_tables(routes, tables)
    published = frozenset[EventType]().union(*(each.events for each in watched))
    for each in watched:
        findings = [
            *_find_in_identity(each, published, version),
            *_find_in_old_values(each),
            *_find_in_silent(each.table),
        ]
        yield from findings or [_well(each)]


def _matching(routes: Sequence[Route], tables: Sequence[Table]) -> dict[str, list[Table]]:
    """Return the tables that each route watches, by the route's key."""
    index, found = RouteIndex(routes), defaultdict[str, list[Table]](list)
    for table in tables:
        for route in index.watching(*table.name):
            found[route.key].append(table)
    return found


def _well(watched: Watched) -> Finding:
    columns = "all columns" if watched.columns is None else ", ".join(sorted(watched.columns))
    return Finding(what=_table(watched.table.name), found=f"{_events(watched.events)} of {columns}")


def _find_in_route(
    route: Route,
    matching: Collection[Table],
    tables: dict[TableName, Table],
    close: CloseNames,
    version: int,
) -> Iterator[Finding]:
    if not matching:
        yield _no_table(route, close)
    for table in matching:
        if table.is_publishable:
            yield from _find_in_columns(route, table, version)
            yield from _find_in_partition(route, table, tables)
        elif not is_glob(route):
            yield _not_publishable(table)


def _no_table(route: Route, close: CloseNames) -> Finding:
    what = f"route to {route.task}"
    if is_glob(route):
        found = f"no table matches {route.schema}.{route.table} now"
        return Finding(
            what=what,
            state=State.WARNING,
            found=found,
            cure="A table that comes later is watched from the next start on.",
        )
    name = f"{route.schema}.{route.table}"
    return Finding(
        what=what,
        state=State.PROBLEM,
        found=f"there is no table {name}.{close.meant(name)}",
        cure="Correct the route, or create the table.",
    )


def _not_publishable(table: Table) -> Finding:
    if table.kind in _KINDS:
        found = f"is a {_KINDS[table.kind]}, and has no log"
        cure = "Name the tables that it is made from in the route."
    else:
        found, cure = (
            "is unlogged: its changes are in no log",
            f"ALTER TABLE {quoted_table(table.name)} SET LOGGED;",
        )
    return _problem(table, found, cure)


def _find_in_columns(route: Route, table: Table, version: int) -> Iterator[Finding]:
    named = dict.fromkeys([*(route.columns or ()), *getattr(route.when, "columns", ())])
    for column in named:
        if column not in table.columns:
            close = get_close_matches(column, table.columns, n=1)
            yield Finding(
                what=f"route to {route.task}",
                state=State.WARNING if is_glob(route) else State.PROBLEM,
                found=f"{_names([table.name])} has no column {column}."
                + (f" Did you mean {close[0]}?" if close else ""),
                cure="Correct the route's columns=, or add the column.",
            )
        elif column in table.virtual_generated or (column in table.stored_generated and version < 18_00_00):
            yield Finding(
                what=f"route to {route.task}",
                state=State.WARNING,
                found=f"{column} of {_names([table.name])} is generated: it is in no log, and is not sent",
                cure="PostgreSQL 18 sends GENERATED ALWAYS AS (…) STORED; before, let the task read the row.",
            )


def _find_in_partition(route: Route, table: Table, tables: dict[TableName, Table]) -> Iterator[Finding]:
    root = next((ancestor for ancestor in reversed(table.ancestors) if ancestor in tables), None)
    if root and not route.matches(*root):
        found = (
            f"{_names([table.name])} is a partition of {_names([root])}, and its changes come as that one's"
        )
        cure = f"Name {_names([root])} in the route."
        yield Finding(what=f"route to {route.task}", state=State.WARNING, found=found, cure=cure)


def _find_in_identity(watched: Watched, published: frozenset[EventType], version: int) -> Iterator[Finding]:
    """Look for what would make the application's own statements fail, or old values come out wrong.

    A publication's events hold for all its tables, whatever the routes of this one are.
    """
    table = watched.table
    if not published & _NEED_A_KEY:
        return
    lacking = [each.table for each in table.identities if not each.identifies_rows]
    full = [each.table for each in table.identities if each.identity is Identity.FULL]
    partial = [each.table for each in table.identities if each.identity is not Identity.FULL]
    if lacking:
        found = f"no primary key in {_names(lacking)}: the application's own UPDATE and DELETE would fail"
        yield _problem(table, found, "Add a primary key, or:\n" + _make_full(table, lacking))
    elif table.is_partitioned and not table.own_identity.identifies_rows:
        found = "no primary key: UPDATE and DELETE will fail in a partition that is added later"
        cure = "Add a primary key, or run for each new partition: ALTER TABLE … REPLICA IDENTITY FULL;"
        yield Finding(what=_table(table.name), state=State.WARNING, found=found, cure=cure)
    if full and table.virtual_generated and version >= 18_00_00:
        found = "REPLICA IDENTITY FULL with a virtual generated column: UPDATE and DELETE would fail"
        yield _problem(table, found, _set_identity(full, "DEFAULT"))
    if table.own_identity.identity is Identity.FULL and partial:
        found = "REPLICA IDENTITY FULL, but not in each partition: old values would come out as NULL"
        yield _problem(table, found, _make_full(table, partial))


def _problem(table: Table, found: str, cure: str) -> Finding:
    return Finding(what=_table(table.name), state=State.PROBLEM, found=found, cure=cure)


def _find_in_old_values(watched: Watched) -> Iterator[Finding]:
    """Routes that ask for old values which are not in the log."""
    table = watched.table
    partial = [
        each.table for each in (table.own_identity, *table.partitions) if each.identity is not Identity.FULL
    ]
    if not partial:
        return
    for route in watched.routes:
        compared = frozenset(getattr(route.when, "columns", ())) - table.key
        if compared and EventType.UPDATE in route.events:
            found = (
                f"whether {_list(compared)} changed is not in the log: {route.when!r} fires at every UPDATE"
            )
            yield _old_values(route, table, found, partial)
        sent = frozenset(route.columns or ()) - table.key
        if sent and EventType.DELETE in route.events:
            found = f"a DELETE says nothing of {_list(sent)}, only {_list(table.key)}"
            yield _old_values(route, table, found, partial)
        if sent and route.args and EventType.UPDATE in route.events:
            found = f"an UPDATE has {_list(sent)} in `after` alone: args= cannot read them in `before`"
            yield _old_values(route, table, found, partial)


def _find_in_silent(table: Table) -> Iterator[Finding]:
    if table.silent:
        found = f"what changes in {_names(table.silent)} is in no log: foreign, or unlogged"
        cure = "ALTER TABLE … SET LOGGED; or watch what is foreign on its own server."
        yield Finding(what=_table(table.name), state=State.WARNING, found=found, cure=cure)


def _old_values(route: Route, table: Table, found: str, partial: Sequence[TableName]) -> Finding:
    return Finding(
        what=f"route to {route.task}",
        state=State.WARNING,
        found=f"{_names([table.name])}: {found}",
        cure="A table with virtual generated columns cannot have REPLICA IDENTITY FULL."
        if table.virtual_generated
        else _make_full(table, partial),
    )


def _make_full(table: Table, tables: Sequence[TableName]) -> str:
    """Return the SQL; with a list of columns still published, the application's UPDATE and DELETE would fail."""
    if not table.listed_in:
        return _set_identity(tables, "FULL")
    name = quoted_table(table.name)
    publications = [quoted(each) for each in table.listed_in]
    drops = [f"ALTER PUBLICATION {each} DROP TABLE ONLY {name};" for each in publications]
    adds = [f"ALTER PUBLICATION {each} ADD TABLE ONLY {name};" for each in publications]
    return "\n".join(["BEGIN;", *drops, _set_identity(tables, "FULL"), *adds, "COMMIT;"])


def _set_identity(tables: Sequence[TableName], identity: str) -> str:
    return "\n".join(f"ALTER TABLE {quoted_table(name)} REPLICA IDENTITY {identity};" for name in tables)


def _names(tables: Sequence[TableName]) -> str:
    return ", ".join(".".join(name) for name in tables)


def _table(name: TableName) -> str:
    return f"table {'.'.join(name)}"


def _list(columns: Collection[str]) -> str:
    return ", ".join(sorted(columns))


def _events(events: Collection[EventType]) -> str:
    return ", ".join(event.name for event in EventType if event in events)
