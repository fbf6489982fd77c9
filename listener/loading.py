"""Finding the routes that CDC_ROUTES names."""

from __future__ import annotations

from importlib import import_module
from operator import attrgetter
from pathlib import Path

from listener.router import BinlogRouter, RouteError

__all__ = ["load_router"]


def load_router(reference: str) -> BinlogRouter:
    """Return the router at `module:attribute`, called if it is a function; raises RouteError."""
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
    router = found() if callable(found) else found
    if not isinstance(router, BinlogRouter):
        raise _unusable(reference, f"it is {type(router).__name__}, not a BinlogRouter")
    return router


def _unusable(reference: str, problem: str) -> RouteError:
    return RouteError(
        f"CDC_ROUTES={reference} cannot be used: {problem}.",
        hint="Name a BinlogRouter, or a function that returns one: CDC_ROUTES=myapp.routes:setup_router",
    )
