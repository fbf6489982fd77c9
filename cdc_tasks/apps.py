"""Finds a Celery app by the argument of `-A`, as `celery -A` does."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cdc_tasks.errors import CDCError
from cdc_tasks.user_code import did_you_mean, is_missing, mistake, similar_module

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["AppNotFoundError", "find_app", "import_tasks"]


class AppNotFoundError(CDCError):
    """-A or CDC_APP does not name a Celery app."""


def find_app(reference: str) -> Celery:
    """Return the app at `module[:app]`, and make it Celery's current app; raises AppNotFoundError.

    Without `:app` it is the module's `app` or `celery`, that of its submodule `celery`, or the module's only app.
    """
    from celery import Celery

    found = _found(reference)
    if not isinstance(found, Celery):
        raise _not_found(reference, f"it is {type(found).__name__}, not a Celery app")
    found.set_current()
    found.set_default()
    return found


def _found(reference: str) -> Any:
    from celery.app.utils import find_app as celerys

    module, _, attribute = reference.partition(":")
    try:
        return celerys(reference)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and is_missing(error, module):
            problem = f"there is no module {module} in {Path.cwd()} or on the Python path"
            raise _not_found(reference, problem, similar_module(module)) from error
        if (
            isinstance(error, ModuleNotFoundError) and error.name == reference
        ):  # Celery has tried it as a module
            raise _not_found(reference, f"the module {module} has no {attribute}") from error
        if isinstance(error, AttributeError) and isinstance(error.obj, ModuleType):
            raise _not_found(reference, f"the module {error.obj.__name__} has no {error.name}") from error
        raise _failed(reference, error) from error


def import_tasks(app: Celery, reference: str) -> None:
    """Import all task modules of an app, as its worker does. Raises AppNotFoundError if one fails."""
    try:
        app.loader.import_default_modules()
        app.finalize()
    except (Exception, SystemExit) as error:
        raise _failed(reference, error) from error


def _failed(reference: str, error: BaseException) -> AppNotFoundError:
    hint = error.hint if isinstance(error, CDCError) else did_you_mean(error)
    return AppNotFoundError(f"The app {reference} cannot be used: {mistake(error)}", hint=hint)


def _not_found(reference: str, problem: str, more: str = "") -> AppNotFoundError:
    return AppNotFoundError(
        f"The app {reference} cannot be used: {problem}.{more}",
        hint="Name it as for celery: -A shop, -A shop.celery or -A shop.celery:app; or CDC_APP=shop",
    )
