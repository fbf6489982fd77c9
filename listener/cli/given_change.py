"""The change described on the command line of `explain`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, Final

from cdc_tasks.changes import Change, EventType, RowChange
from cdc_tasks.errors import CDCError
from cdc_tasks.routing.router import BinlogRouter
from listener.core.existing_table import ExistingTable
from listener.core.findings import CloseNames
from listener.daemon.database_url import home_schema
from listener.daemon.settings import ListenerSettings
from listener.daemon.wiring import read_existing_tables

__all__ = ["GivenChangeError", "GivenRow", "NoSuchTableError", "given_change", "no_such_table"]

_EVENTS: Final = tuple(each for each in EventType if each not in {EventType.ALL, EventType.ENQUEUED})
_WITHOUT_OLD: Final = {EventType.INSERT, EventType.READ, EventType.TRUNCATE}
_WITHOUT_NEW: Final = {EventType.DELETE, EventType.TRUNCATE}


class GivenChangeError(CDCError):
    """The arguments do not describe a change."""


class NoSuchTableError(CDCError):
    """The database has no such table."""


class GivenRow(dict[str, Any]):
    """A row with only the given columns; it notes which others are read."""

    def __init__(self, columns: Mapping[str, Any], lacking: set[str]) -> None:
        super().__init__(columns)
        self._lacking = lacking

    def __missing__(self, column: str) -> Any:
        self._lacking.add(column)
        raise KeyError(column)

    def __contains__(self, column: object) -> bool:
        is_there = super().__contains__(column)
        if not is_there and isinstance(column, str):
            self._lacking.add(column)
        return is_there

    def get(self, column: str, default: Any = None) -> Any:
        """Return the value, as `dict` does."""
        return self[column] if column in self else default  # noqa: SIM401 - that is `get`


@dataclass(kw_only=True)
class Given:
    """A described change."""

    change: Change
    lacking: set[str] = field(default_factory=set)  # columns that were read and are not given
    notes: list[str] = field(default_factory=list)


def given_change(
    settings: ListenerSettings,
    router: BinlogRouter,
    words: tuple[str, str],
    before: str | None,
    after: str | None,
) -> Given:
    """Return the change of TABLE and EVENT, with the rows in JSON. Raise GivenChangeError, NoSuchTableError."""
    table, event = words
    home = home_schema(settings.database_url.get_secret_value())
    schema, dot, name = table.partition(".")
    schema, name = (schema, name) if dot else (home, table)
    kind, lacking = _event(event), set[str]()
    rows = _rows(kind, before, after, lacking)
    notes = list(_notes(settings, router, (schema, name), home, rows))
    change = RowChange(
        id="explained",
        schema=schema,
        table=name,
        event=kind,
        before=rows[0],
        after=rows[1],
        position="0/0:0",
        committed_at=datetime.now(UTC),
    )
    return Given(change=change, lacking=lacking, notes=notes)


def _event(text: str) -> EventType:
    found = next((each for each in _EVENTS if each.value == text.lower()), None)
    if found is not None:
        return found
    close = get_close_matches(text.lower(), [each.value for each in _EVENTS], n=1)
    raise GivenChangeError(
        f"There is no event {text}." + (f" Did you mean {close[0]}?" if close else ""),
        hint=f"Write one of {', '.join(each.value for each in _EVENTS)}.",
        code="no_such_event",
    )


def _rows(
    event: EventType, before: str | None, after: str | None, lacking: set[str]
) -> tuple[GivenRow | None, GivenRow | None]:
    if before is not None and event in _WITHOUT_OLD:
        raise GivenChangeError(f"There is no row before {_a(event)}.", hint="Leave out --before.")
    if after is not None and event in _WITHOUT_NEW:
        raise GivenChangeError(f"There is no row after {_a(event)}.", hint="Leave out --after.")
    if after is None and event not in _WITHOUT_NEW:
        raise GivenChangeError(f"The row after {_a(event)} is missing.", hint=_example("--after"))
    if before is None and event is EventType.DELETE:
        raise GivenChangeError("The row that a delete removes is missing.", hint=_example("--before"))
    return _row("--before", before, lacking), _row("--after", after, lacking)


def _a(event: EventType) -> str:
    return f"{'an' if event.value[0] in 'iu' else 'a'} {event.value}"


def _example(option: str) -> str:
    return f"""Write it as JSON, quoted for the shell: {option} '{{"id": 7, "status": "paid"}}'"""


def _row(option: str, text: str | None, lacking: set[str]) -> GivenRow | None:
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GivenChangeError(
            f"{option} is not JSON: {error}.", hint=_example(option), code="given_row"
        ) from None
    if not isinstance(found, dict):
        raise GivenChangeError(
            f"{option} is not an object with columns and values.", hint=_example(option), code="given_row"
        )
    return GivenRow(found, lacking)


def _notes(
    settings: ListenerSettings,
    router: BinlogRouter,
    table: tuple[str, str],
    home: str,
    rows: Iterable[GivenRow | None],
) -> Iterator[str]:
    """Yield notes on what the catalogue does not confirm. Raise NoSuchTableError, GivenChangeError."""
    try:
        tables = read_existing_tables(settings)[1]
    except CDCError as error:
        yield f"Whether the database has this table is unknown: {error.message}"
        return
    found = next((each for each in tables if (each.schema, each.name) == table), None)
    if found is not None:
        _check_columns(found, {column for row in rows if row is not None for column in row})
    elif any((each.schema, each.table) == table for each in router.routes):
        yield f"The database has no visible table {'.'.join(table)}, but a route names it."
    elif table[0] == home or any(each.schema == table[0] for each in tables):
        raise no_such_table(table, tables, router)
    else:
        yield f"The tables of the schema {table[0]} were not checked."


def no_such_table(
    table: tuple[str, str], tables: Iterable[ExistingTable], router: BinlogRouter
) -> NoSuchTableError:
    """Return the error for a table that does not exist, with a similar name if there is one."""
    names = {f"{each.schema}.{each.name}" for each in tables}
    routed = {f"{each.schema}.{each.table}" for each in router.routes}
    name = ".".join(table)
    return NoSuchTableError(
        f"The database has no table {name}.{CloseNames(sorted(names | routed)).meant(name)}",
        hint=f"It has {_listed(sorted(names))}.",
    )


def _listed(names: list[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}" if names else "none"


def _check_columns(table: ExistingTable, given: set[str]) -> None:
    if unknown := sorted(given.difference(table.columns)):
        raise GivenChangeError(
            f"{table.schema}.{table.name} has no column {unknown[0]}.{CloseNames(table.columns).meant(unknown[0])}",
            hint=f"It has {_listed(list(table.columns))}.",
            code="no_such_column",
        )
