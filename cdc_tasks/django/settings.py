"""Settings of cdc-tasks in Django's settings: `CDC_NAME = "shop"` replaces the variable CDC_NAME."""

from __future__ import annotations

import os
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, Final

from django import conf

from cdc_tasks.django.celery_app import celery_app_name
from cdc_tasks.django.database import database_url
from cdc_tasks.environment import SettingsError, is_set
from cdc_tasks.variables import KNOWN

__all__ = [
    "application",
    "column_lists",
    "database_alias",
    "put_into_environment",
    "routes_reference",
    "unknown_settings",
]

_ROUTES: Final = "cdc_tasks.django.routes:setup_router"
# With it Celery does not run all of Django's checks before it imports the tasks.
SKIP_CHECKS: Final = "CELERY_SKIP_CHECKS"
_OURS: Final = "_CDC_FROM_DJANGO"  # names of variables that this module set
_WITHOUT_VARIABLE: Final = frozenset({"CDC_CONTEXT", "CDC_DATABASE"})


def database_alias() -> str:
    """Return the alias of the watched database: CDC_DATABASE, or `default`."""
    named = os.environ.get("CDC_DATABASE") or getattr(conf.settings, "CDC_DATABASE", None)
    return str(named or "default")


def column_lists() -> bool:
    """Return whether CDC_COLUMN_LISTS is set."""
    return str(_value("CDC_COLUMN_LISTS") or "").lower() in {"1", "true", "yes", "on"}


def application() -> str:
    """Return the Celery app as for `celery -A`: CDC_APP, or its usual place in a Django project."""
    return str(_value("CDC_APP") or celery_app_name())


def routes_reference() -> str:
    """Return CDC_ROUTES; by default the routes of the installed apps."""
    return str(_value("CDC_ROUTES") or _ROUTES)


def put_into_environment() -> None:
    """Set the listener's variables from Django's settings, except those that are already set.

    Raises SettingsError for a value that a variable cannot have, and for a database that the listener cannot read.
    """
    for name in os.environ.pop(_OURS, "").split():  # a reload reads Django's settings again
        os.environ.pop(name, None)
    for name in _names():
        if name not in _WITHOUT_VARIABLE:
            _set(name, _text(name, getattr(conf.settings, name)))
    # Even if DATABASE_URL is set: it may be in the form of django-environ. DATABASES has what Django made of it.
    if not is_set("CDC_DATABASE_URL"):
        _set("CDC_DATABASE_URL", database_url(database_alias()))
    _set("CDC_ROUTES", routes_reference())
    _set(SKIP_CHECKS, "yes")
    _set("CDC_APP", application())


def unknown_settings() -> Iterator[tuple[str, str | None]]:
    """Yield each unknown setting CDC_…, and the one that was probably meant."""
    known = KNOWN | _WITHOUT_VARIABLE
    for name in _names():
        if name not in known:
            yield name, next(iter(get_close_matches(name, known, n=1)), None)


def _value(name: str) -> Any:
    """Return the variable, or else Django's setting."""
    return os.environ.get(name) or getattr(conf.settings, name, None)


def _set(name: str, value: str) -> None:
    if value and not is_set(name):  # an empty variable counts as not set
        os.environ[name] = value
        os.environ[_OURS] = f"{os.environ.get(_OURS, '')} {name}"


def _names() -> list[str]:
    return [name for name in dir(conf.settings) if name.startswith("CDC_") and name.isupper()]


def _text(name: str, value: Any) -> str:
    """Return a setting's value as the variable's text."""
    if value is None or isinstance(value, bool):
        return "" if value is None else str(value).lower()
    if isinstance(value, list | tuple | set):
        return ",".join(map(str, value))
    if not isinstance(value, str | int | float):
        raise SettingsError(
            f"{name} in Django's settings is of type {type(value).__name__}, which a variable cannot have.",
            hint=f"Write it as text, as in docs/settings.md: {name} = '…'",
            code="django_setting",
        )
    return str(value)
