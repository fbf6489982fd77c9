"""Settings of Celery and Flower, each with its reason, and the module that has them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Final

from cdc_tasks.environment import value_of

__all__ = ["OWN_MODULE", "settings_module"]

OWN_MODULE: Final = "cdc_tasks.config.celery"
_CONVENTIONAL: Final = "celeryconfig"  # the module name in Celery's manual; any application may have one


def settings_module() -> str:
    """Return the name of the module with Celery's settings.

    CDC_CELERY_CONFIG_MODULE or CELERY_CONFIG_MODULE names it. The default is a `celeryconfig.py` that imports our
    settings, such as the one in the repository. Any other `celeryconfig.py` may be another application's and is not
    used.
    """
    if chosen := value_of("CELERY_CONFIG_MODULE"):
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
    except ValueError:  # it is being imported, or other code has replaced it in `sys.modules`
        return None
    if spec is None or not spec.origin:
        return None
    path = Path(spec.origin)
    return path if path.suffix == ".py" and path.is_file() else None
