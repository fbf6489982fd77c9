"""Checks that the tables fit the routes: pure, no I/O."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Final

from cdc_tasks.changes import EventType
from cdc_tasks.routing.arguments import named_columns
from cdc_tasks.routing.router import Route, RouteIndex
from listener.core.findings import CloseNames, Finding, State
from listener.postgres.hints import PARTITIONED, PARTITIONED_HINT, quoted, quoted_table
from listener.postgres.tables.catalogue import Identity, Table, TableName
from listener.postgres.tables.selection import SelectedTable, is_glob, selected_tables

__all__ = ["find_harm", "find_in_tables", "find_refused", "for_wal2json"]

_NEED_A_KEY: Final = {EventType.UPDATE, EventType.DELETE}

_KINDS: Final = {"v": "view", "m": "materialized view", "f": "foreign table"}


def find_in_tables(
    routes: Sequence[Route],
    tables: Sequence[Table],
    known: Collection[TableName],
    version: int,
    former: Mapping[TableName, TableName | None] | None = None,
) -> Iterator[Finding]:
    """Yield the problems and warnings of the routes' tables, and one finding for each table without any.

    `tables` are those of the routes, `known` the names of all tables; `version` is libpq's number (150004).
    `former` are former names of selected tables, each with the table's name now; None if it no longer exists.
    """
    by_name = {table.name: table for table in tables}
    matching = _matching(routes, tables)
    close = CloseNames(".".join(name) for name in known)
    missing = partial(_no_table, close=close, former=former or {})
    for route in dict.fromkeys(routes):
        yield from _find_in_route(route, matching.get(route.id, ()), by_name, version, missing)
    selected = selected_tables(routes, tables)
    published = frozenset[EventType]().union(*(each.events for each in selected))
    for each in selected:
        findings = [
            *_find_in_identity(each, published, version),
            *_find_in_old_values(each),
            *_find_in_silent(each.table),
        ]
        yield from findings or [_well(each)]


def _matching(routes: Sequence[Route], tables: Sequence[Table]) -> dict[str, list[Table]]:
    """Return the tables that each route selects, by the route's key."""
    index, found = RouteIndex(routes), defaultdict[str, list[Table]](list)
    for table in tables:
        for route in index.watching(*table.name):
            found[route.id].append(table)
    return found


def for_wal2json(findings: Sequence[Finding], selected: Sequence[SelectedTable]) -> list[Finding]:
    """Return the findings with a problem for each partitioned table: wal2json sends too little about those."""
    refused = [
        _problem(each.table, "partitioned_table", PARTITIONED, PARTITIONED_HINT)
        for each in selected
        if each.table.is_partitioned
    ]
    tables = {each.what for each in refused}
    return [*(each for each in findings if each.what not in tables), *refused]


def _well(selected: SelectedTable) -> Finding:
    columns = "all columns" if selected.columns is None else ", ".join(sorted(selected.columns))
    found = f"{_events(selected.events)} of {columns}"
    return Finding(what=_table(selected.table.name), code="table", found=found)


def _find_in_route(
    route: Route,
    matching: Collection[Table],
    tables: dict[TableName, Table],
    version: int,
    missing: Callable[[Route], Finding],
) -> Iterator[Finding]:
    if not matching:
        yield missing(route)
    for table in matching:
        if table.is_publishable:
            yield from _find_in_columns(route, table, version)
            yield from _find_in_partition(route, table, tables)
        elif not is_glob(route):
            yield _not_publishable(table)


def _no_table(route: Route, close: CloseNames, former: Mapping[TableName, TableName | None]) -> Finding:
    what = f"route to {route.task}"
    if is_glob(route):
        found = f"no table matches {route.schema}.{route.table} now"
        return Finding(
            what=what,
            state=State.WARNING,
            code="table_missing",
            found=found,
            hint="A matching table is read as soon as it is created.",
        )
    if (route.schema, route.table) in former:
        return _no_table_any_more(route, former[route.schema, route.table])
    name = f"{route.schema}.{route.table}"
    return Finding(
        what=what,
        state=State.PROBLEM,
        code="table_missing",
        found=f"there is no table {name}.{close.meant(name)}",
        hint="Correct the route, or create the table.",
    )


def _no_table_any_more(route: Route, now: TableName | None) -> Finding:
    became = f"is called {'.'.join(now)} now" if now else "no longer exists"
    return Finding(
        what=f"route to {route.task}",
        state=State.WARNING,
        code="table_renamed" if now else "table_missing",
        found=f"{route.schema}.{route.table} {became}: only what was committed before still comes under that name",
        hint="Remove the route when the listener has read those changes: once `python -m listener status` has shown"
        " lag_bytes 0.",
    )


def find_harm(selected: SelectedTable, published: frozenset[EventType], version: int) -> list[Finding]:
    """Return why the table must not be published: its UPDATE and DELETE would fail, or old values would be wrong."""
    return [each for each in _find_in_identity(selected, published, version) if each.state is State.PROBLEM]


def find_refused(selected: Iterable[SelectedTable]) -> Iterator[Finding]:
    """Yield a problem for each table whose UPDATE and DELETE the server refuses now because of a list of columns."""
    for each in selected:
        for listed in each.table.listed_in:
            names = [own.table for own in each.table.identities if listed.refuses(own)]
            if names:
                events = " and ".join(sorted(listed.events, reverse=True))
                yield _problem(
                    each.table,
                    "column_list",
                    f"{events} of {_names(names)} are refused now: the publication {listed.publication} lists columns,"
                    " and not all of the replica identity",
                    "\n".join(["BEGIN;", *_unlist(each.table, [listed.publication]), "COMMIT;"]),
                )


def _unlist(table: Table, publications: Iterable[str]) -> list[str]:
    name = quoted_table(table.name)
    return [
        f"ALTER PUBLICATION {quoted(each)} {what} TABLE ONLY {name};"
        for each in publications
        for what in ("DROP", "ADD")
    ]


def _not_publishable(table: Table) -> Finding:
    if table.kind in _KINDS:
        found = f"is a {_KINDS[table.kind]}, and is not logged"
        hint = "Name its base tables in the route."
    else:
        found = "is unlogged: its changes are not in the log"
        hint = f"ALTER TABLE {quoted_table(table.name)} SET LOGGED;"
    return _problem(table, "table_not_logged", found, hint)


def _find_in_columns(route: Route, table: Table, version: int) -> Iterator[Finding]:
    named = dict.fromkeys(
        [*(route.columns or ()), *getattr(route.when, "columns", ()), *getattr(route.key, "columns", ())]
    )
    for column in named:
        if column not in table.columns:
            close = get_close_matches(column, table.columns, n=1)
            yield Finding(
                what=f"route to {route.task}",
                state=State.WARNING if is_glob(route) else State.PROBLEM,
                code="column_missing",
                found=f"{_names([table.name])} has no column {column}."
                + (f" Did you mean {close[0]}?" if close else ""),
                hint="Correct columns=, when= or key= of the route, or add the column.",
            )
        elif column in table.virtual_generated or (column in table.stored_generated and version < 18_00_00):
            yield Finding(
                what=f"route to {route.task}",
                state=State.WARNING,
                code="generated_column",
                found=f"{column} of {_names([table.name])} is a generated column: it is not logged, and not sent",
                hint="PostgreSQL 18 sends GENERATED ALWAYS AS (…) STORED; before 18, read the row in the task.",
            )


def _find_in_partition(route: Route, table: Table, tables: dict[TableName, Table]) -> Iterator[Finding]:
    root = next((ancestor for ancestor in reversed(table.ancestors) if ancestor in tables), None)
    if root and not route.matches(*root):
        found = (
            f"{_names([table.name])} is a partition of {_names([root])}, and its changes come under that name"
        )
        hint = f"Name {_names([root])} in the route."
        what = f"route to {route.task}"
        yield Finding(what=what, state=State.WARNING, code="partition", found=found, hint=hint)


def _find_in_identity(
    selected: SelectedTable, published: frozenset[EventType], version: int
) -> Iterator[Finding]:
    """Yield problems that would make the application's own statements fail, or old values wrong.

    A publication's events apply to all its tables, independent of this table's routes.
    """
    table = selected.table
    if not published & _NEED_A_KEY:
        return
    lacking = [each.table for each in table.identities if not each.identifies_rows]
    full = [each.table for each in table.identities if each.identity is Identity.FULL]
    partial = [each.table for each in table.identities if each.identity is not Identity.FULL]
    if lacking:
        found = f"no primary key in {_names(lacking)}: the application's own UPDATE and DELETE would fail"
        yield _problem(
            table, "replica_identity", found, "Add a primary key, or:\n" + _make_full(table, lacking)
        )
    elif table.is_partitioned and not table.own_identity.identifies_rows:
        found = "no primary key: UPDATE and DELETE will fail in a partition that is added later"
        hint = "Add a primary key, or run for each new partition: ALTER TABLE … REPLICA IDENTITY FULL;"
        yield _warning(table, "replica_identity", found, hint)
    if full and table.virtual_generated and version >= 18_00_00:
        found = "REPLICA IDENTITY FULL with a virtual generated column: UPDATE and DELETE would fail"
        yield _problem(table, "virtual_column", found, _set_identity(full, "DEFAULT"))
    if table.own_identity.identity is Identity.FULL and partial:
        found = "REPLICA IDENTITY FULL, but not in each partition: old values would come out as NULL"
        yield _problem(table, "partition_identity", found, _make_full(table, partial))


def _problem(table: Table, code: str, found: str, hint: str) -> Finding:
    return Finding(what=_table(table.name), state=State.PROBLEM, code=code, found=found, hint=hint)


def _warning(table: Table, code: str, found: str, hint: str) -> Finding:
    return Finding(what=_table(table.name), state=State.WARNING, code=code, found=found, hint=hint)


def _find_in_old_values(selected: SelectedTable) -> Iterator[Finding]:
    """Yield a warning for each route that needs old values that are not in the log."""
    table = selected.table
    partial = [
        each.table for each in (table.own_identity, *table.partitions) if each.identity is not Identity.FULL
    ]
    if not partial:
        return
    for route in selected.routes:
        compared = frozenset(getattr(route.when, "columns", ())) - table.key
        if compared and EventType.UPDATE in route.events:
            fires = getattr(route.when, "without_old_values", "at every UPDATE")
            found = f"whether {_list(compared)} changed is not in the log: {route.when!r} fires {fires}"
            yield _old_values(route, table, found, partial)
        sent = frozenset(route.columns or ()) - table.key
        if sent and EventType.DELETE in route.events:
            found = f"a DELETE does not have {_list(sent)}, only {_list(table.key)}"
            yield _old_values(route, table, found, partial)
        of_key = frozenset(getattr(route.key, "columns", ())) - table.key - sent
        if of_key and EventType.DELETE in route.events:
            found = f"a DELETE does not have {_list(of_key)} of key=, only {_list(table.key)}: it is parked"
            yield _old_values(route, table, found, partial)
        if sent and _reads_freely(route) and EventType.UPDATE in route.events:
            found = f"an UPDATE has {_list(sent)} in `after` alone: args= cannot read them in `before`"
            yield _old_values(route, table, found, partial)


def _reads_freely(route: Route) -> bool:
    """Return whether a function creates the arguments: it may read `before`."""
    return route.args is not None and named_columns(route.args, route.kwargs) is None


def _find_in_silent(table: Table) -> Iterator[Finding]:
    if table.silent:
        found = f"changes of {_names(table.silent)} are not logged: foreign or unlogged tables"
        hint = "ALTER TABLE … SET LOGGED; or run a listener on the foreign server, too."
        yield _warning(table, "table_not_logged", found, hint)


def _old_values(route: Route, table: Table, found: str, partial: Sequence[TableName]) -> Finding:
    return Finding(
        what=f"route to {route.task}",
        state=State.WARNING,
        code="old_values",
        found=f"{_names([table.name])}: {found}",
        hint="A table with virtual generated columns cannot have REPLICA IDENTITY FULL."
        if table.virtual_generated
        else _make_full(table, partial),
    )


def _make_full(table: Table, tables: Sequence[TableName]) -> str:
    """Return the SQL. It removes lists of columns: with one, the application's UPDATE and DELETE would fail."""
    if not table.listed_in:
        return _set_identity(tables, "FULL")
    changes = _unlist(table, [each.publication for each in table.listed_in])
    return "\n".join(["BEGIN;", *changes, _set_identity(tables, "FULL"), "COMMIT;"])


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
