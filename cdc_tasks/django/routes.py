"""The project's routes: `on_change` on its tasks, and registrations in the apps' `cdc.py`."""

from __future__ import annotations

import os

from django.utils.module_loading import autodiscover_modules
from pydantic import SecretStr

from cdc_tasks.django.database import database_url, home_schema, watched_connection
from cdc_tasks.django.registry import Registered, accepted, registered
from cdc_tasks.django.settings import SKIP_CHECKS, application, database_alias, routes_reference
from cdc_tasks.environment import SettingsError
from cdc_tasks.routing.router import BinlogRouter, RouteError
from cdc_tasks.routing.tables import all_tables
from cdc_tasks.source_lines import standing_at

__all__ = ["load_project_router", "setup_router"]


def setup_router() -> BinlogRouter:
    """Return a router with the routes of each app's `cdc.py`; those of `on_change` are added with the Celery app.

    Raises RouteError, with file and line, and any error of the project's modules.
    """
    autodiscover_modules("cdc")
    router, schema = BinlogRouter(), home_schema(watched_connection(database_alias()))
    for each in registered():
        _add(router, each, schema)
    if tasks := accepted():
        router.accept(*tasks)
    return router


def _add(router: BinlogRouter, each: Registered, schema: str) -> None:
    try:
        with standing_at(each.place):
            for table in all_tables(each.table):
                router.register(table.schema or schema, table.table, each.events, each.task, **each.options)
    except RouteError as error:
        message = f"{error.message.rstrip('.')} ({each.place})."
        raise RouteError(message, hint=error.hint, code=error.code) from None
    except TypeError as error:  # an unknown option
        raise RouteError(f"{error} ({each.place}).") from None


def load_project_router() -> BinlogRouter:
    """Return the router that `manage.py cdc` uses. Raises CDCError, with file and line of a mistake in the project."""
    from listener.daemon.application import router_for
    from listener.daemon.settings import RouteSettings

    os.environ.setdefault(SKIP_CHECKS, "yes")  # they run now
    return router_for(
        RouteSettings(cdc_app=application(), cdc_routes=routes_reference(), database_url=_url_or_none())
    )


def _url_or_none() -> SecretStr | None:
    try:
        return SecretStr(database_url(database_alias()))
    except SettingsError:  # routes can be shown with any database, e.g. a developer's SQLite
        return None
