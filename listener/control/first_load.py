"""Automatic backfills: of a first start, and those that the listener offers after an accepted gap."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from shlex import quote
from typing import Any, Final, NamedTuple

import structlog

from cdc_tasks.changes import EventType
from cdc_tasks.errors import CDCError
from cdc_tasks.routing.router import Route
from listener.control.commands import Command

__all__ = ["LOADED", "OFFER", "ExistingTables", "backfill_commands", "first_backfills", "now", "offered_in"]

log = structlog.get_logger()

_CHUNK: Final = 1_000
_WHO: Final = "the listener: run --backfill"

LOADED: Final = "loaded:"  # before a table's name, in the state that survives restarts
OFFER: Final = "offer:"


class ExistingTables(NamedTuple):
    """Queries the tables of the database."""

    names: Callable[[], Sequence[tuple[str, str]]]  # schema and name of each; raises CDCError
    estimate: Callable[[str, str], int]  # rows of a table; raises CDCError if it cannot be backfilled
    name: str  # CDC_NAME


def first_backfills(
    tables: ExistingTables, routes: Sequence[Route], known: Sequence[str]
) -> Iterator[Command]:
    """Yield a command for each table with routes that take READ, except the `known` ones (schema.table).

    Log tables that cannot be backfilled. Raise CDCError if the database does not answer.
    """
    reading = [route for route in routes if EventType.READ in route.events]
    for schema, table in tables.names() if reading else ():
        if f"{schema}.{table}" in known or not any(route.matches(schema, table) for route in reading):
            continue
        try:
            estimate = tables.estimate(schema, table)
        except CDCError as error:
            log.error(  # noqa: TRY400 - a person needs no traceback
                "first_load_refused",
                table=f"{schema}.{table}",
                code=error.code,
                error=error.message,
                hint=error.hint,
            )
            continue
        yield _command(tables.name, schema, table, estimate)


def _command(name: str, schema: str, table: str, estimate: int) -> Command:
    """Return the command; its id depends only on the table, so a killed start does not request it twice."""
    digest = hashlib.blake2b(f"{name}\0{schema}\0{table}".encode(), digest_size=6).hexdigest()
    arguments: dict[str, Any] = {"schema": schema, "table": table, "where": None, "routes": []}
    arguments |= {"rate": None, "chunk": _CHUNK, "estimate": estimate}
    return Command(verb="backfill", arguments=arguments, id=digest, who=_WHO)


def backfill_commands(tables: Sequence[tuple[str, str]], routes: Sequence[Route]) -> dict[str, str]:
    """Return the backfill command for each table that a backfill can update.

    The rows go to the table's routes with READ; without any, to those that take inserts or updates. A read
    is useless for routes of only deletes or truncates.
    """
    found: dict[str, str] = {}
    for schema, table in tables:
        concerned = [
            route for route in routes if route.matches(schema, table) and not _STATE.isdisjoint(route.events)
        ]
        if not concerned:
            continue
        reads = any(EventType.READ in route.events for route in concerned)
        tasks = () if reads else dict.fromkeys(route.task for route in concerned)
        more = "".join(f" --task {quote(task)}" for task in tasks)
        found[f"{schema}.{table}"] = f"python -m listener backfill {quote(f'{schema}.{table}')}{more}"
    return found


_STATE: Final = frozenset(
    {EventType.INSERT, EventType.UPDATE, EventType.READ}
)  # events with a row as it is now


def offered_in(fields: dict[str, dict[str, Any]]) -> list[str]:
    """Return the commands that the listener offers, from the state that survives restarts."""
    return [value["command"] for name, value in fields.items() if name.startswith(OFFER)]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
