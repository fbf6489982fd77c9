"""The application that `-A` or CDC_APP names: its Celery app, and the routes at its tasks and in CDC_ROUTES.

Without one, the listener has an app with Celery's settings only, and imports no task: it knows tasks by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cdc_tasks.config import settings_module
from cdc_tasks.config.part_settings import use_settings
from cdc_tasks.environment import TWINS, is_set, variable
from cdc_tasks.errors import CDCError
from cdc_tasks.routing.router import BinlogRouter, RouteError
from cdc_tasks.settings import SettingsError
from cdc_tasks.user_code import mistake
from listener.core.findings import CloseNames
from listener.daemon.database_url import home_schema
from listener.daemon.load_routes import load_router
from listener.daemon.settings import ListenerSettings, RouteSettings

# Loading Celery takes as long as everything else that `routes` needs, so it is loaded only if an app is needed.
if TYPE_CHECKING:
    from celery import Celery

__all__ = ["cache_url", "celery_app", "router_for"]

_PLAIN_REDIS = ("redis://", "rediss://")
# Tasks of cdc-tasks that a user's app may use, and their modules.
_OUR_TASKS = {
    "cdc_tasks.deliver": "cdc_tasks.notify.delivery",
    "cdc_tasks.refresh_master_cache": "cdc_tasks.master_cache",
}


def celery_app(settings: ListenerSettings) -> Celery:
    """Return the app that CDC_APP names, or else one with Celery's settings and no tasks.

    Raises AppNotFoundError and SettingsError.
    """
    from celery import Celery

    from cdc_tasks.installed import Parts

    if settings.cdc_app is not None:
        return _found_app(settings.cdc_app)
    app = Celery("listener", amqp="cdc_tasks.broker.queues:AMQP")
    use_settings(app, Parts())
    module = settings.celery_config_module or settings_module()
    try:
        app.config_from_object(module, force=True)
    except CDCError:
        raise
    except Exception as error:
        raise SettingsError(
            f"{variable('CELERY_CONFIG_MODULE')}={module} cannot be imported: {mistake(error)}",
            hint="Write a module that starts with: from cdc_tasks.config.celery import *",
            code="celery_config_module",
        ) from error
    return app


def cache_url(settings: ListenerSettings) -> str:
    """Return the address of CACHE_URL's Redis; with CDC_APP that of CDC_CACHE_URL, or else of the app's own broker."""
    given = settings.cache_url.get_secret_value()
    if settings.cdc_app is None or is_set(TWINS["CACHE_URL"]):
        return given
    broker = str(_found_app(settings.cdc_app).conf.broker_write_url or "")
    return broker if broker.startswith(_PLAIN_REDIS) and ";" not in broker else given


def _found_app(name: str) -> Celery:
    from cdc_tasks.apps import find_app

    return find_app(name)


def router_for(settings: RouteSettings) -> BinlogRouter:
    """Return the routes of CDC_ROUTES, and with CDC_APP also those at the app's tasks.

    Raises RouteError, AppNotFoundError, and what `load_router` raises.
    """
    if settings.cdc_app is None:
        return load_router(settings.cdc_routes, settings.source_url)
    from cdc_tasks.apps import import_tasks
    from cdc_tasks.routing.decorators import router_of

    app = _found_app(settings.cdc_app)
    import_tasks(app, settings.cdc_app)
    given = _given_router(app, settings)
    schema = home_schema(settings.source_url) if settings.source_url else "public"
    found = router_of(app, given, schema=schema)
    _accept(app, found)
    _check_tasks(app, found)
    return found


def _given_router(app: Celery, settings: RouteSettings) -> BinlogRouter | None:
    """Return the router of CDC_ROUTES, or else of the app setting `cdc_routes`; None if neither is set."""
    reference: Any = settings.cdc_routes if settings.has_routes else app.conf.get("cdc_routes")
    if reference is None or isinstance(reference, BinlogRouter):
        return reference
    return load_router(reference, settings.source_url)


def _accept(app: Celery, router: BinlogRouter) -> None:
    """Let transactions enqueue what the app's setting `cdc_accept` names. Raises RouteError."""
    accepted: Any = app.conf.get("cdc_accept") or ()
    for each in accepted if isinstance(accepted, list | tuple | set) else [accepted]:
        router.accept(each)


def _check_tasks(app: Celery, router: BinlogRouter) -> None:
    """Raise RouteError for a route to a task that the app does not have."""
    for route in router.routes:
        if route.task not in app.tasks:
            meant = CloseNames(set(app.tasks)).meant(route.task)
            raise RouteError(
                f"The app {app.main} has no task {route.task}.{meant}",
                hint=_import_hint(route.task),
                code="unknown_task",
            )


def _import_hint(task: str) -> str:
    if module := _OUR_TASKS.get(task):
        return f'Let the app import it: Celery(…, include=["{module}"]), or app.conf.include'
    return "Correct the route, or let the app import the module of the task: imports, include, or autodiscover_tasks"
