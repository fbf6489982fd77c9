"""Settings of Celery and of Flower, each with its reason, and which module they are read from."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Final

__all__ = ["OWN_MODULE", "settings_module"]

OWN_MODULE: Final = "cdc_tasks.config.celery"
_CONVENTIONAL: Final = "celeryconfig"  # what Celery's manual calls a settings module, whoever's it is


def settings_module() -> str:
    """Return the name of the module with Celery's settings.

    CELERY_CONFIG_MODULE names it. Without that it is a `celeryconfig.py` that starts from our settings, as the one of
    a checkout does. A `celeryconfig.py` that does not is another application's: it is not used.
    """
    if chosen := os.environ.get("CELERY_CONFIG_MODULE"):
        return chosen
    found = conventional_file()
    return _CONVENTIONAL if found and OWN_MODULE in found.read_text(errors="replace") else OWN_MODULE


def ignored_file() -> Path | None:
    """Return the `celeryconfig.py` that is not used, if there is one."""
    return conventional_file() if settings_module() == OWN_MODULE else None


def conventional_file() -> Path | None:
    """Return the `celeryconfig.py` that Python would import, without importing it."""
    try:
        spec = find_spec(_CONVENTIONAL)
    except ValueError:  # it is being imported, or somebody has put something else in its place
        return None
    if spec is None or not spec.origin:
        return None
    path = Path(spec.origin)
    return path if path.suffix == ".py" and path.is_file() else None
