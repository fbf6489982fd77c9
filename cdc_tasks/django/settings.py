"""Settings of cdc-tasks among Django's: `CDC_NAME = "shop"` stands for the variable CDC_NAME."""

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
_OURS: Final = "_CDC_FROM_DJANGO"  # names of variables that were set here
_WITHOUT_VARIABLE: Final = frozenset({"CDC_CONTEXT", "CDC_DATABASE"})


def database_alias() -> str:
    """Return the alias of the database that is watched: CDC_DATABASE, or `default`."""
    named = os.environ.get("CDC_DATABASE") or getattr(conf.settings, "CDC_DATABASE", None)
    return str(named or "default")


def column_lists() -> bool:
    """Return whether CDC_COLUMN_LISTS is set."""
    return str(_value("CDC_COLUMN_LISTS") or "").lower() in {"1", "true", "yes", "on"}


def application() -> str:
    """Return what `celery -A` calls the Celery app: CDC_APP, or where projects of Django's have it."""
    return str(_value("CDC_APP") or celery_app_name())


def routes_reference() -> str:
    """Return what CDC_ROUTES names: by default the routes of the installed apps."""
    return str(_value("CDC_ROUTES") or _ROUTES)


def put_into_environment() -> None:
    """Set the variables that the listener reads from Django's settings; those that are set already stay.

    Raises SettingsError for a value that no variable can have, and for a database that the listener cannot read.
    """
    for name in os.environ.pop(_OURS, "").split():  # a reload reads Django's settings again
        os.environ.pop(name, None)
    for name in _names():
        if name not in _WITHOUT_VARIABLE:
            _set(name, _text(name, getattr(conf.settings, name)))
    # Also if DATABASE_URL is set: that may be written for django-environ. What Django made of it is in DATABASES.
    if not is_set("CDC_DATABASE_URL"):
        _set("CDC_DATABASE_URL", database_url(database_alias()))
    _set("CDC_ROUTES", routes_reference())
    _set(SKIP_CHECKS, "yes")
    _set("CDC_APP", application())


def unknown_settings() -> Iterator[tuple[str, str | None]]:
    """Yield each setting CDC_… that means nothing, and the one that was probably meant."""
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
            f"{name} of Django's settings is {type(value).__name__}, which no variable can be.",
            hint=f"Write it as text, as docs/settings.md has it: {name} = '…'",
            code="django_setting",
        )
    return str(value)
