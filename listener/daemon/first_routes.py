"""A first file of routes for the existing tables: a pure function from table descriptions to Python text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import Final

from listener.core.existing_table import ExistingTable

__all__ = ["obstacle", "option_for", "routes_file", "split_by_use"]

_WIDTH: Final = 88  # of most formatters
_GLOB: Final = re.compile(r"([*?[])")
# Tables of tools, by their owner; no application needs their rows.
_HOUSEKEEPING: Final = {
    "alembic_version": "Alembic",
    "ar_internal_metadata": "Rails",
    "django_migrations": "Django's migrations",
    "django_session": "Django's sessions",
    "flyway_schema_history": "Flyway",
    "schema_migrations": "a migration tool",
}
_SPEAKING: Final = ("status", "state", "name", "title")  # columns that make an example clear


def obstacle(table: ExistingTable) -> str:
    """Return why the table is only a comment in the file; empty if it has a route."""
    keeper = _HOUSEKEEPING.get(table.name)
    return f"of {keeper}." if keeper else table.obstacle


def split_by_use(tables: Sequence[ExistingTable]) -> tuple[list[ExistingTable], list[ExistingTable]]:
    """Return the tables with a route, and those left out."""
    used = [each for each in tables if not obstacle(each)]
    return used, [each for each in tables if obstacle(each)]


def routes_file(tables: Sequence[ExistingTable], *, module: str, home: str, app: str | None = None) -> str:
    """Return the text of the file `module`.py; `home` is the schema that the listener passes to `setup_router`.

    `app` is the user's own Celery app, as for `celery -A`: then the file shows a route on a
    task, too. At least one table must be free of obstacles.
    """
    used, _ = split_by_use(tables)
    at_home = [each for each in tables if each.schema == home]
    elsewhere = [each for each in tables if each.schema != home]
    parts = [
        _docstring(module, next((each for each in used if each.name.isidentifier()), used[0]), app),
        "from cdc_tasks import BinlogRouter, EventType",
        "",
        "CHANGES = [EventType.INSERT, EventType.UPDATE, EventType.DELETE]",
        "",
        "# Each table with its key: a task gets only these columns.",
        *_mapping("TABLES", [(_text(_escaped(each.name)), each) for each in at_home]),
    ]
    if any(each in used for each in elsewhere):
        entries = [
            (f"({_text(_escaped(each.schema))}, {_text(_escaped(each.name))})", each) for each in elsewhere
        ]
        parts += ["", *_mapping("TABLES_ELSEWHERE", entries)]
    return "\n".join([*parts, *_setup(home, has_more=any(each in used for each in elsewhere)), ""])


def _docstring(module: str, example: ExistingTable, app: str | None) -> str:
    name, task = _text(_escaped(example.name)), _task(example)
    column = next((each for each in _SPEAKING if each in example.columns), example.columns[-1])
    text = f'''"""Which change fires which task: yours to edit.

Remove the tables that no task needs. Each other table fires a task:

    from cdc_tasks import RowChange
    from {_celery_app(app)} import app

    @app.task(name="{task}")
    def after_change(message):
        change = RowChange.from_message(message)

{_where_tasks_are(app, name, column, example.key[0])}
A separate route can be more specific (`changed` and `became` are in cdc_tasks):

    router.register(
        schema,
        {name},
        [EventType.UPDATE],
        "{task}",
        when=changed({_text(column)}),
        columns=[{_text(example.key[0])}, {_text(column)}],
    )

    export CDC_ROUTES={module}:setup_router
    python -m listener {option_for(app)}check
"""
'''
    return text.replace("\\", "\\\\")


def _celery_app(app: str | None) -> str:
    return app.partition(":")[0] if app else "cdc_tasks.celery"


def option_for(app: str | None) -> str:
    """Return the option that names the app, followed by a space; empty without an app."""
    return f"-A {app} " if app else ""


def _where_tasks_are(app: str | None, table: str, column: str, key: str) -> str:
    if app is None:
        return "For the worker, CDC_TASK_MODULES names the module with the task.\n"
    return f"""Or put the route on the task, without this file:

    from celery import shared_task
    from cdc_tasks import UPDATE, changed, on_change

    @on_change({table}, UPDATE, when=changed({_text(column)}), args=[{_text(key)}])
    @shared_task
    def after_update(key): ...
"""


def _mapping(name: str, entries: Sequence[tuple[str, ExistingTable]]) -> Iterator[str]:
    yield f"{name} = {{"
    for key, table in entries:
        if reason := obstacle(table):
            yield from _comment(f"{key}: {reason}")
            continue
        if table.remark:
            yield from _comment(table.remark)
        yield from _entry(key, table.key)
    yield "}"


def _comment(text: str) -> list[str]:
    return wrap(
        text,
        _WIDTH,
        initial_indent="    # ",
        subsequent_indent="    #   ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _entry(key: str, columns: Sequence[str]) -> list[str]:
    names = list(map(_text, columns))
    line = f"    {key}: [{', '.join(names)}],"
    if len(line) <= _WIDTH:
        return [line]
    return [f"    {key}: [", *(f"        {each}," for each in names), "    ],"]


def _setup(home: str, *, has_more: bool) -> Iterator[str]:
    yield f'''

def setup_router(schema: str = {_text(home)}) -> BinlogRouter:
    """Return the routes; the listener passes `schema`, so they serve other databases too."""
    router = BinlogRouter()
    for table, key in TABLES.items():
        router.register(schema, table, CHANGES, task_of(table), columns=key)'''
    if has_more:
        yield """    for (other, table), key in TABLES_ELSEWHERE.items():
        router.register(other, table, CHANGES, task_of(table), columns=key)"""
    yield '''    return router


def task_of(table: str) -> str:
    """Return the name of a table's task."""
    return f"app.{table}_changed"'''


def _task(table: ExistingTable) -> str:
    return f"app.{_escaped(table.name)}_changed"


def _escaped(name: str) -> str:
    """Return the name as a route takes it, with the characters of globs escaped."""
    return _GLOB.sub(r"[\1]", name)


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
