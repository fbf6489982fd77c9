"""System checks: whether the routes can be loaded, and what pending migrations would do to watched tables.

`manage.py migrate` runs them before it begins, and so does `manage.py check --tag cdc --database default`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from django.core.checks import CheckMessage, Error, Info, Warning  # noqa: A004 - Django's own name
from django.db import DatabaseError

from cdc_tasks.django.database import Table, watched_connection
from cdc_tasks.django.migrations_ahead import Effect, EffectKind, effects_of_pending_migrations
from cdc_tasks.django.routes import load_project_router
from cdc_tasks.django.settings import column_lists, database_alias, unknown_settings
from cdc_tasks.errors import CDCError
from cdc_tasks.user_code import mistake

if TYPE_CHECKING:
    from cdc_tasks.routing.router import BinlogRouter, Route

__all__ = ["check_migrations", "check_routes", "check_settings"]


def check_routes(**_: Any) -> list[CheckMessage]:
    """Return an error if the listener could not load the routes; the whole of `manage.py check` goes on."""
    try:
        load_project_router()
    except CDCError as error:
        return [Error(error.message, hint=error.hint, id="cdc.E001")]
    except Exception as error:  # noqa: BLE001 - a project's module may raise anything
        return [Error(f"The routes cannot be loaded: {mistake(error)}", id="cdc.E001")]
    return []


def check_settings(**_: Any) -> list[CheckMessage]:
    """Return a warning for each setting CDC_… that means nothing."""
    return [
        Warning(
            f"The setting {name} is not known to cdc-tasks.",
            hint=f"Did you mean {meant}?" if meant else "docs/settings.md lists what there is.",
            id="cdc.W009",
        )
        for name, meant in unknown_settings()
    ]


def check_migrations(databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Return what the pending migrations would do to tables that routes watch; it reads the database.

    `databases` has aliases if Django allows a check to use them: `migrate`, `check --database`.
    """
    if database_alias() not in (databases or ()):
        return []
    try:
        connection, router = watched_connection(database_alias()), load_project_router()
    except Exception:  # noqa: BLE001 - `check_routes` and the listener tell of it
        return []
    if connection.vendor not in {"postgresql", "mysql"}:
        return []
    try:
        effects = effects_of_pending_migrations(connection)
    except DatabaseError as error:
        return [_not_looked_at(error)]
    return [each for effect in effects for each in _messages(effect, router, connection.vendor)]


def _not_looked_at(error: Exception) -> CheckMessage:
    return Warning(
        f"The pending migrations could not be compared with the routes: {str(error).strip()}",
        hint="Run the check again when the database answers: manage.py check --tag cdc --database default",
        id="cdc.W010",
    )


# --- From an effect to a message ------------------------------------------------------------------------


def _messages(effect: Effect, router: BinlogRouter, vendor: str) -> Iterator[CheckMessage]:
    watching = _watching(router, effect.table)
    if effect.kind is EffectKind.RENAMED_TABLE:
        yield from _of_renamed_table(effect, watching, router)
    elif watching and (effect.kind not in _ON_POSTGRES_ONLY or vendor == "postgresql"):
        yield from _MESSAGES[effect.kind](effect, watching)


def _watching(router: BinlogRouter, table: Table | None) -> list[Route]:
    return [] if table is None else [each for each in router.routes if each.matches(table.schema, table.name)]


def _of_renamed_table(effect: Effect, old: list[Route], router: BinlogRouter) -> Iterator[CheckMessage]:
    """Yield a warning for each name without a route: a change comes under the name that the table had then."""
    new = _watching(router, effect.renamed_to)
    for routes, others, missing in ((old, new, effect.renamed_to), (new, old, effect.table)):
        if left := [each for each in routes if each.task not in {other.task for other in others}]:
            yield _warning(
                1,
                effect,
                f"{effect.table} is renamed to {effect.renamed_to}; {_tasks(left)} {_verb(left)} for only one of the"
                f" names: {missing} has no such route.",
                "Stop the listener, migrate, and start it with a route for each name; a route may name a table as"
                f" text: {missing}. Take the old name out when `manage.py cdc status` has shown lag_bytes 0.",
            )


def _of_dropped_table(effect: Effect, watching: list[Route]) -> Iterator[CheckMessage]:
    yield _warning(
        2,
        effect,
        f"{effect.table} is dropped; {_tasks(watching)} {_verb(watching)} for it. Its last changes still come.",
        "Take the route out after that: `manage.py cdc check` warns of a route without a table.",
    )


def _of_renamed_column(effect: Effect, watching: list[Route]) -> Iterator[CheckMessage]:
    for route, uses in _touched(watching, effect.column):
        yield _warning(
            3,
            effect,
            f"{effect.table}.{effect.column} is renamed to {effect.new}; the route to {route.task} {uses}.",
            f"Let the route name {effect.new}, and restart the listener when migrate has run. What was written"
            f" before still comes with {effect.column}.",
        )


def _of_dropped_column(effect: Effect, watching: list[Route]) -> Iterator[CheckMessage]:
    for route, uses in _touched(watching, effect.column):
        yield _warning(
            4,
            effect,
            f"{effect.table}.{effect.column} is dropped; the route to {route.task} {uses}.",
            _out_of_the_list(effect) if column_lists() else _NO_LONGER_NAMED,
        )


_NO_LONGER_NAMED: Final = (
    "Let the route do without it, and restart the listener before migrate: until then its value is missing, and a"
    " listener that starts with such a route is refused."
)


def _out_of_the_list(effect: Effect) -> str:
    return (
        "Let the route do without it, and restart the listener before migrate: with CDC_COLUMN_LISTS, DROP COLUMN …"
        f" CASCADE takes {effect.table} out of the publication, and what is written meanwhile is a gap."
    )


def _of_altered_type(effect: Effect, watching: list[Route]) -> Iterator[CheckMessage]:
    for route, uses in _touched(watching, effect.column):
        yield _warning(
            5,
            effect,
            f"{effect.table}.{effect.column} gets the type {effect.new} instead of {effect.old_type}; the route to"
            f" {route.task} {uses}.",
            "From then on its value has the form of the new type: see what when= compares with, and what the task"
            " expects.",
        )


def _of_no_primary_key(effect: Effect, watching: list[Route]) -> Iterator[CheckMessage]:
    yield _warning(
        6,
        effect,
        f"{effect.table} is made without a primary key; {_tasks(watching)} {_verb(watching)} for it.",
        "PostgreSQL refuses UPDATE and DELETE of a published table without one. Give it one, or: ALTER TABLE"
        f" {effect.table} REPLICA IDENTITY FULL;",
    )


def _of_own_sql(effect: Effect, watching: list[Route]) -> Iterator[CheckMessage]:
    yield _warning(
        7,
        effect,
        f"RunSQL has `{effect.new} …`; {_tasks(watching)} {_verb(watching)} for {effect.table}. What the statement"
        " does to the route was not looked at.",
        'See "Changing tables" in docs/operating.md.',
    )


def _of_filled_table(effect: Effect, watching: list[Route]) -> Iterator[CheckMessage]:
    yield _warning(
        8,
        effect,
        f"{effect.table} is new, {_tasks(watching)} {_verb(watching)} for it, and {effect.new} may fill it in the"
        " same run.",
        "The listener publishes a new table a second or two after it is there. Rows from before that are a gap: it is"
        f" told, and they fire nothing. To have none: {_apart(effect)}, and go on when `manage.py cdc check` shows"
        " the table.",
    )


def _apart(effect: Effect) -> str:
    """Return how to fill the table later than it is made."""
    if effect.new == effect.migration:
        return "move what fills it into a migration of its own, migrate up to the one before it"
    return f"first run `manage.py migrate {effect.migration.replace('.', ' ')}`"


def _of_new_table(effect: Effect, watching: list[Route]) -> Iterator[CheckMessage]:
    yield Info(
        f"{effect.migration}: {effect.table} is new; {_tasks(watching)} {_verb(watching)} for it.",
        hint="The listener publishes it a second or two after it is there. Let the application write to it after that.",
        id="cdc.I001",
    )


_ON_POSTGRES_ONLY: Final = {
    EffectKind.NEW_TABLE,
    EffectKind.FILLED_TABLE,
}  # elsewhere there is no publication
_MESSAGES: Final[dict[EffectKind, Callable[[Effect, list[Route]], Iterable[CheckMessage]]]] = {
    EffectKind.NEW_TABLE: _of_new_table,
    EffectKind.FILLED_TABLE: _of_filled_table,
    EffectKind.NO_PRIMARY_KEY: _of_no_primary_key,
    EffectKind.DROPPED_TABLE: _of_dropped_table,
    EffectKind.RENAMED_COLUMN: _of_renamed_column,
    EffectKind.DROPPED_COLUMN: _of_dropped_column,
    EffectKind.ALTERED_TYPE: _of_altered_type,
    EffectKind.OWN_SQL: _of_own_sql,
}


def _warning(number: int, effect: Effect, text: str, hint: str) -> CheckMessage:
    return Warning(f"{effect.migration}: {text}", hint=hint, id=f"cdc.W{number:03}")


def _tasks(routes: Sequence[Route]) -> str:
    return " and ".join(sorted({each.task for each in routes}))


def _verb(routes: Sequence[Route]) -> str:
    return "fires" if len({each.task for each in routes}) == 1 else "fire"


def _touched(watching: Iterable[Route], column: str) -> Iterator[tuple[Route, str]]:
    """Yield the routes to which a column may matter, and how."""
    for route in watching:
        names = [what for what in ("columns", "when", "args", "kwargs") if column in _named(route, what)]
        if names:
            yield route, f"names it in {' and '.join(f'{what}=' for what in names)}"
        elif route.columns is None or _may_read(route.when) or _may_read(route.args):
            yield route, "has a function that may read it" if _has_function(route) else "sends the whole row"


def _named(route: Route, what: str) -> Sequence[str]:
    value = getattr(route, what, None)
    found = value if what == "columns" else getattr(value, "columns", None)
    return found if isinstance(found, tuple) else ()


def _may_read(function: object) -> bool:
    """Return whether it is a project's own function, which may read any column."""
    return function is not None and not hasattr(function, "columns")


def _has_function(route: Route) -> bool:
    return any(map(_may_read, (route.when, route.args, getattr(route, "kwargs", None))))
