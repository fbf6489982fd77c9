"""The project's routes: `on_change` on its tasks, and what the apps' `cdc.py` register."""

from __future__ import annotations

from django.utils.module_loading import autodiscover_modules

from cdc_tasks.django.database import database_url, home_schema, watched_connection
from cdc_tasks.django.registry import registered
from cdc_tasks.django.settings import database_alias, routes_reference
from cdc_tasks.routing.router import BinlogRouter
from cdc_tasks.settings import SettingsError

__all__ = ["load_project_router", "setup_router"]


def setup_router() -> BinlogRouter:
    """Return a router with the routes of all installed apps; what their modules raise comes through."""
    autodiscover_modules("tasks", "cdc")
    router = BinlogRouter()
    schema = home_schema(watched_connection(database_alias()))
    for each in registered:
        s, _, t = str(each.table).rpartition(".")
        router.register(s or schema, t, each.events, each.task, **each.options)
    return router


def load_project_router() -> BinlogRouter:
    """Return the router that `manage.py cdc` uses: this one, or that of CDC_ROUTES."""
    from listener.daemon.load_routes import load_router

    return load_router(routes_reference(), _url_or_none())


def _url_or_none() -> str | None:
    try:
        return database_url(database_alias())
    except SettingsError:  # routes can be looked at on any database, e.g. on the SQLite of a developer
        return None
