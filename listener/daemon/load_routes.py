"""Load the routes that CDC_ROUTES names."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from inspect import signature, unwrap
from operator import attrgetter
from pathlib import Path
from typing import Any

from cdc_tasks.errors import CDCError
from cdc_tasks.routing.router import BinlogRouter, RouteError
from cdc_tasks.source_lines import place
from cdc_tasks.user_code import did_you_mean, is_missing, mistake, similar_module
from listener.daemon.database_url import home_schema

__all__ = ["load_router"]


def load_router(reference: str, database_url: str | None) -> BinlogRouter:
    """Return the router at `module:attribute`; a function is called.

    A function with a parameter `schema` gets the database's home schema if there is a `database_url`, so the same
    routes work on PostgreSQL and MySQL. Raises UnknownDatabaseTypeError if the URL names no schema, and RouteError for
    whatever the user's module raises: with its file and line.
    """
    found = _find(reference)
    router = _call(reference, found, database_url) if callable(found) else found
    if not isinstance(router, BinlogRouter):
        raise _unusable(reference, f"it is {type(router).__name__}, not a BinlogRouter")
    return router


def _find(reference: str) -> Any:
    module, _, attribute = reference.partition(":")
    try:
        imported = import_module(module)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and is_missing(error, module):
            problem = f"there is no module {module} in {Path.cwd()} or on the Python path"
            raise _unusable(reference, problem, similar_module(module)) from error
        raise _failed(reference, error) from error
    try:
        return attrgetter(attribute)(imported)
    except AttributeError as error:
        raise _unusable(reference, str(error)) from error


def _call(reference: str, setup: Callable[..., Any], database_url: str | None) -> Any:
    arguments = _arguments(reference, setup, database_url)
    try:
        return setup(**arguments)
    except (Exception, SystemExit) as error:
        raise _failed(reference, error) from error


def _arguments(reference: str, setup: Callable[..., Any], database_url: str | None) -> dict[str, str]:
    """Return the arguments for the routes function. Raise RouteError if it needs others."""
    expected = signature(setup)
    given = {}
    if database_url is not None and "schema" in expected.parameters:
        given["schema"] = home_schema(database_url)
    try:
        expected.bind(**given)
    except TypeError as error:
        code = getattr(unwrap(setup), "__code__", None)
        where = f"{place(code)}: " if code else ""
        raise RouteError(
            f"CDC_ROUTES={reference} cannot be used: {where}{error}.",
            hint='Give each parameter a default: def setup_router(schema: str = "public") -> BinlogRouter',
            code="routes_not_loaded",
        ) from error
    return given


def _failed(reference: str, error: BaseException) -> RouteError:
    """Return the error for an exception in the user's module."""
    message = f"CDC_ROUTES={reference} cannot be used: {mistake(error)}"
    if isinstance(error, CDCError):
        return RouteError(message, hint=error.hint, code=error.code)
    hint = did_you_mean(error, signature(BinlogRouter.register).parameters)
    return RouteError(message, hint=hint, code="routes_not_loaded")


def _unusable(reference: str, problem: str, more: str = "") -> RouteError:
    return RouteError(
        f"CDC_ROUTES={reference} cannot be used: {problem}.{more}",
        hint="Name a BinlogRouter, or a function that returns one: CDC_ROUTES=myapp.routes:setup_router",
        code="routes_not_loaded",
    )
