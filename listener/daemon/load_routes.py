"""Finding the routes that CDC_ROUTES names."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from inspect import signature
from operator import attrgetter
from pathlib import Path
from typing import Any

from cdc_tasks.routing.router import BinlogRouter, RouteError
from listener.daemon.database_url import home_schema

__all__ = ["load_router"]


def load_router(reference: str, database_url: str | None) -> BinlogRouter:
    """Return the router at `module:attribute`; a function is called. Raises RouteError.

    A function with a parameter `schema` gets the database's home schema, if there is a `database_url`: so the same
    routes work on PostgreSQL and MySQL. Raises UnknownDatabaseTypeError if the URL names no schema.
    """
    module, _, attribute = reference.partition(":")
    try:
        found = attrgetter(attribute)(import_module(module))
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # something that the module itself imports
        raise _unusable(
            reference, f"there is no module {module} in {Path.cwd()} or on the Python path"
        ) from error
    except AttributeError as error:
        raise _unusable(reference, str(error)) from error
    router = _call(found, database_url) if callable(found) else found
    if not isinstance(router, BinlogRouter):
        raise _unusable(reference, f"it is {type(router).__name__}, not a BinlogRouter")
    return router


def _call(setup: Callable[..., Any], database_url: str | None) -> Any:
    if database_url is None or "schema" not in signature(setup).parameters:
        return setup()
    return setup(schema=home_schema(database_url))


def _unusable(reference: str, problem: str) -> RouteError:
    return RouteError(
        f"CDC_ROUTES={reference} cannot be used: {problem}.",
        hint="Name a BinlogRouter, or a function that returns one: CDC_ROUTES=myapp.routes:setup_router",
        code="routes_not_loaded",
    )
