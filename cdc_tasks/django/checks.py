"""System checks: whether the routes can be loaded, and how pending migrations would affect watched tables.

`manage.py migrate` runs them before it begins. `manage.py check --tag cdc --database default` runs them too.
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
    """Return an error if the listener could not load the routes; the other checks still run."""
    try:
        load_project_router()
    except CDCError as error:
        return [Error(error.message, hint=error.hint, id="cdc.E001")]
    except Exception as error:  # noqa: BLE001 - a project's module may raise anything
        return [Error(f"The routes cannot be loaded: {mistake(error)}", id="cdc.E001")]
    return []


def check_settings(**_: Any) -> list[CheckMessage]:
    """Return a warning for each unknown setting CDC_…."""
    return [
        Warning(
            f"cdc-tasks has no setting {name}.",
            hint=f"Did you mean {meant}?" if meant else "docs/settings.md lists all settings.",
            id="cdc.W009",
        )
        for name, meant in unknown_settings()
    ]


def check_migrations(databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Return how the pending migrations would affect tables that routes watch; it reads the database.

    `databases` has aliases if Django allows a check to use them: `migrate`, `check --database`.
    """
    if database_alias() not in (databases or ()):
        return []
    try:
        connection, router = watched_connection(database_alias()), load_project_router()
    except Exception:  # noqa: BLE001 - `check_routes` and the listener report it
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
        hint="Repeat the check when the database answers: manage.py check --tag cdc --database default",
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
    """Yield a warning for each name without a route: a change has the name that the table had at that time."""
    new = _watching(router, effect.renamed_to)
    for routes, others, missing in ((old, new, effect.renamed_to), (new, old, effect.table)):
        if left := [each for each in routes if each.task not in {other.task for other in others}]:
            yield _warning(
                1,
                effect,
                f"{effect.table} is renamed to {effect.renamed_to}; {_tasks(left)} {_verb(left)} for only one of the"
                f" names: {missing} has no such route.",
                "Stop the listener, migrate, and start it with a route for each name; a route may name a table as"
                f" text: {missing}. Remove the old name when `manage.py cdc status` has shown lag_bytes 0.",
            )


def _of_dropped_table(effect: Effect, watching: list[Route]) -> Iterator[CheckMessage]:
    yield _warning(
        2,
        effect,
        f"{effect.table} is dropped; {_tasks(watching)} {_verb(watching)} for it. Its last changes still arrive.",
        "Remove the route after that: `manage.py cdc check` warns about a route without a table.",
    )


def _of_renamed_column(effect: Effect, watching: list[Route]) -> Iterator[CheckMessage]:
    for route, uses in _touched(watching, effect.column):
        yield _warning(
            3,
            effect,
            f"{effect.table}.{effect.column} is renamed to {effect.new}; the route to {route.task} {uses}.",
            f"Change the route to {effect.new}, and restart the listener after migrate. Earlier changes still come"
            f" with {effect.column}.",
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
    "Remove the column from the route, and restart the listener before migrate. After migrate its value is missing,"
    " and a listener with such a route does not start."
)


def _out_of_the_list(effect: Effect) -> str:
    return (
        "Remove the column from the route, and restart the listener before migrate: with CDC_COLUMN_LISTS, DROP COLUMN"
        f" … CASCADE removes {effect.table} from the publication, and its changes until then are a gap."
    )


def _of_altered_type(effect: Effect, watching: list[Route]) -> Iterator[CheckMessage]:
    for route, uses in _touched(watching, effect.column):
        yield _warning(
            5,
            effect,
            f"{effect.table}.{effect.column} gets the type {effect.new} instead of {effect.old_type}; the route to"
            f" {route.task} {uses}.",
            "From then on its value has the form of the new type: check what when= compares it with, and what the task"
            " expects.",
        )


def _of_no_primary_key(effect: Effect, watching: list[Route]) -> Iterator[CheckMessage]:
    yield _warning(
        6,
        effect,
        f"{effect.table} is created without a primary key; {_tasks(watching)} {_verb(watching)} for it.",
        "PostgreSQL refuses UPDATE and DELETE of a published table without one. Give it one, or: ALTER TABLE"
        f" {effect.table} REPLICA IDENTITY FULL;",
    )


def _of_own_sql(effect: Effect, watching: list[Route]) -> Iterator[CheckMessage]:
    yield _warning(
        7,
        effect,
        f"RunSQL has `{effect.new} …`; {_tasks(watching)} {_verb(watching)} for {effect.table}. The effect of the"
        " statement on the route was not checked.",
        'See "Changing tables" in docs/operating.md.',
    )


def _of_filled_table(effect: Effect, watching: list[Route]) -> Iterator[CheckMessage]:
    yield _warning(
        8,
        effect,
        f"{effect.table} is new, {_tasks(watching)} {_verb(watching)} for it, and {effect.new} may fill it in the"
        " same run.",
        "The listener publishes a new table a second or two after its creation. Earlier rows are a gap: the listener"
        f" reports it, and they fire nothing. To avoid the gap: {_apart(effect)}, and continue when"
        " `manage.py cdc check` shows the table.",
    )


def _apart(effect: Effect) -> str:
    """Return how to fill the table later than it is created."""
    if effect.new == effect.migration:
        return "move the operation that fills it into its own migration, migrate up to the one before it"
    return f"first run `manage.py migrate {effect.migration.replace('.', ' ')}`"


def _of_new_table(effect: Effect, watching: list[Route]) -> Iterator[CheckMessage]:
    yield Info(
        f"{effect.migration}: {effect.table} is new; {_tasks(watching)} {_verb(watching)} for it.",
        hint="The listener publishes it a second or two after its creation. The application should write to it later.",
        id="cdc.I001",
    )


_ON_POSTGRES_ONLY: Final = {
    EffectKind.NEW_TABLE,
    EffectKind.FILLED_TABLE,
}  # other databases have no publication
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
    """Yield the routes that may use a column, and how."""
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
