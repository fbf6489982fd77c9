"""Which versions of Celery and kombu a worker needs: checked before anything of theirs is extended.

An installation by force can leave older ones: without the check a worker would end in a traceback, or start without a
part that the guarantees need.
"""

from __future__ import annotations

from importlib import metadata
from typing import Final

from kombu.utils.text import version_string_as_tuple

from cdc_tasks.errors import CDCError

__all__ = ["OldCeleryError", "check_versions"]

_OLDEST: Final = (5, 7)
_PACKAGES: Final = ("celery", "kombu")


class OldCeleryError(CDCError):
    """This version of Celery, or of kombu, is too old."""


def check_versions() -> None:
    """Raise OldCeleryError if Celery or kombu is older than 5.7."""
    found = {name: metadata.version(name) for name in _PACKAGES}
    old = [name for name, version in found.items() if version_string_as_tuple(version)[:2] < _OLDEST]
    if old:
        told = " and ".join(f"{name} {found[name]}" for name in old)
        raise OldCeleryError(
            f"cdc-tasks' workers do not run with {told}.",
            hint="pip install 'celery>=5.7,<5.8' 'kombu>=5.7,<5.8'",
        )
