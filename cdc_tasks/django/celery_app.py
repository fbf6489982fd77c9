"""Finds the Celery app of a Django project."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from django import conf

from cdc_tasks.environment import SettingsError

__all__ = ["celery_app_name"]


def celery_app_name() -> str:
    """Return the package that has the project's Celery app, in its `celery.py` or in a variable; raises SettingsError.

    It is the one with the settings, or with `wsgi.py`, `asgi.py` or `urls.py`.
    """
    tried = list(_candidates())
    for name in tried:
        if _has_app(name):
            return name
    raise SettingsError(
        f"There is no Celery app in {', '.join(tried) or 'the project'}.",
        hint='Name it, as for celery -A: CDC_APP = "shop.celery:app" in the settings.',
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


def _has_app(name: str) -> bool:
    """Return whether `celery -A name` would find an app. Raises what its module raises."""
    from celery import Celery
    from celery.app.utils import find_app

    try:
        return isinstance(find_app(name), Celery)
    except ModuleNotFoundError as error:
        if error.name == f"{name}.celery":
            return False
        raise
    except AttributeError:  # the package has no variable with an app
        return False
