"""The project's routes: `on_change` on its tasks, and what the apps' `cdc.py` register."""

from __future__ import annotations

from django.utils.module_loading import autodiscover_modules

from cdc_tasks.django.database import database_url, home_schema, table_of, watched_connection
from cdc_tasks.django.registry import Registered, registered
from cdc_tasks.django.settings import database_alias, routes_reference
from cdc_tasks.routing.router import BinlogRouter
from cdc_tasks.settings import SettingsError

__all__ = ["load_project_router", "setup_router"]


def setup_router() -> BinlogRouter:
    """Return a router with the routes of all installed apps; what their modules raise comes through."""
    autodiscover_modules("tasks", "cdc")
    router = BinlogRouter()
    for each in registered:
        _add(router, each)
    return router


def _add(router: BinlogRouter, each: Registered) -> None:
    schema, table = _names(each.table)
    task = each.task if isinstance(each.task, str) else str(each.task.name)
    router.register(schema, table, each.events, task, **each.options)


def _names(table: object) -> tuple[str, str]:
    connection = watched_connection(database_alias())
    if not isinstance(table, str):
        found = table_of(table, connection)  # type: ignore[arg-type]  # a model
        return found.schema, found.name
    schema, _, name = table.rpartition(".")
    return schema or home_schema(connection), name


def load_project_router() -> BinlogRouter:
    """Return the router that `manage.py cdc` uses: this one, or that of CDC_ROUTES."""
    from listener.daemon.load_routes import load_router

    return load_router(routes_reference(), _url_or_none())


def _url_or_none() -> str | None:
    try:
        return database_url(database_alias())
    except SettingsError:  # routes can be looked at on any database, e.g. on the SQLite of a developer
        return None
