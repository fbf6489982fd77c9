"""The project's routes: `on_change` on its tasks, and what the apps' `cdc.py` register."""

from __future__ import annotations

from django.utils.module_loading import autodiscover_modules

from cdc_tasks.django.database import database_url, home_schema, watched_connection
from cdc_tasks.django.registry import Registered, registered
from cdc_tasks.django.settings import database_alias, routes_reference
from cdc_tasks.routing.decorators import router_of
from cdc_tasks.routing.router import BinlogRouter, RouteError
from cdc_tasks.routing.tables import all_tables
from cdc_tasks.settings import SettingsError

__all__ = ["load_project_router", "setup_router"]


def setup_router() -> BinlogRouter:
    """Return a router with the routes of all installed apps: those of `cdc.py`, then those of `on_change`.

    Raises RouteError, with file and line, and what the project's modules raise.
    """
    autodiscover_modules("tasks", "cdc")
    router, schema = BinlogRouter(), home_schema(watched_connection(database_alias()))
    for each in registered():
        _add(router, each, schema)
    return router_of(None, router, schema=schema)


def _add(router: BinlogRouter, each: Registered, schema: str) -> None:
    try:
        for table in all_tables(each.table):
            router.register(table.schema or schema, table.table, each.events, each.task, **each.options)
    except RouteError as error:
        message = f"{error.message.rstrip('.')} ({each.place})."
        raise RouteError(message, hint=error.hint, code=error.code) from None
    except TypeError as error:  # an option that there is not
        raise RouteError(f"{error} ({each.place}).") from None


def load_project_router() -> BinlogRouter:
    """Return the router that `manage.py cdc` uses: this one, or that of CDC_ROUTES."""
    from listener.daemon.load_routes import load_router

    return load_router(routes_reference(), _url_or_none())


def _url_or_none() -> str | None:
    try:
        return database_url(database_alias())
    except SettingsError:  # routes can be looked at on any database, e.g. on the SQLite of a developer
        return None
