"""The project's Celery app: `CDC_APP`, or where projects of Django's have it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

from django import conf

from cdc_tasks.settings import SettingsError

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["find_celery_app"]


def find_celery_app(named: str | None) -> tuple[str, Celery]:
    """Return the app and what `celery -A` calls it; raises SettingsError.

    Without a name it is the app of the package that has the settings, or `wsgi.py`, `asgi.py` or `urls.py`: in its
    `celery.py`, or in a variable of the package.
    """
    tried = [named] if named else list(_candidates())
    for name in tried:
        if (app := _app(name)) is not None:
            return name, app
    raise SettingsError(
        f"There is no Celery app in {', '.join(tried) or 'the project'}.",
        hint='Say where it is, as celery -A does: CDC_APP = "shop.celery:app" in the settings.',
        code="django_celery_app",
    )


def _candidates() -> Iterator[str]:
    settings = conf.settings
    names: list[str | None] = [settings.SETTINGS_MODULE]
    names += [
        getattr(settings, name, None) for name in ("WSGI_APPLICATION", "ASGI_APPLICATION", "ROOT_URLCONF")
    ]
    found = dict.fromkeys(each.partition(".")[0] for each in names if each)
    for package in found:
        if find_spec(package) is not None:
            yield package


def _app(name: str) -> Celery | None:
    """Return the app as `celery -A name` finds it; what its module raises comes through."""
    from celery.app.utils import find_app

    try:
        return find_app(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name.replace(':', '.')}.celery".startswith(error.name):
            return None
        raise
    except AttributeError:
        return None
