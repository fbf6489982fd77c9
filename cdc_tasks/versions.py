"""What the installed Celery and kombu can do. Celery 5.4 to 5.7 are supported; some parts need a newer version.

docs/versions.md has the table. A missing part is reported once: by a worker in its log, and by `python -m listener
check`.
"""

from __future__ import annotations

from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Final, NamedTuple

from cdc_tasks.errors import CDCError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["OldCeleryError", "celery_is", "check_versions", "installed", "lacking_parts"]

Version = tuple[int, ...]

_SUPPORTED: Final[dict[str, tuple[Version, Version]]] = {  # from, up to but not including
    "celery": ((5, 4), (5, 8)),
    "kombu": ((5, 3, 4), (5, 8)),
}
_HINT: Final = "pip install 'celery>=5.4,<5.8' 'kombu>=5.3.4,<5.8'"


class OldCeleryError(CDCError):
    """This version of Celery or kombu is not supported."""


class _Part(NamedTuple):
    since: Version  # of Celery
    brokers: frozenset[str]  # kombu's `driver_type`
    instead: str  # what happens with an older one


_REDIS: Final = frozenset({"redis"})
_RABBITMQ: Final = frozenset({"amqp"})
_PARTS: Final = (
    _Part(
        (5, 5),
        _RABBITMQ,
        "No delayed delivery: a worker keeps tasks that are due later in memory, and cdc-tasks' queues are classic "
        "queues instead of quorum queues.",
    ),
    _Part(
        (5, 5),
        _REDIS | _RABBITMQ,
        "No soft shutdown: after SIGTERM a worker waits until its running tasks have ended, up to their time limit.",
    ),
    _Part(
        (5, 6),
        _RABBITMQ,
        "No limit for the tasks that are due later in a worker's memory.",
    ),
)


def celery_is(*oldest: int) -> bool:
    """Return whether the installed Celery has at least this version."""
    return installed("celery") >= oldest


@cache
def installed(package: str) -> Version:
    """Return the version of an installed package as numbers: (5, 4, 0), without any suffix."""
    numbers = []
    for part in metadata.version(package).split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def check_versions() -> None:
    """Raise OldCeleryError if Celery or kombu is older or newer than the supported versions."""
    unfit = [
        f"{name} {'.'.join(map(str, installed(name)))}"
        for name, (oldest, too_new) in _SUPPORTED.items()
        if not oldest <= installed(name) < too_new
    ]
    if unfit:
        raise OldCeleryError(f"cdc-tasks does not run with {' and '.join(unfit)}.", hint=_HINT)


def lacking_parts(broker: str) -> list[str]:
    """Return what the installed Celery lacks with a broker of this `driver_type`, one sentence each."""
    return list(_lacking(broker))


def _lacking(broker: str) -> Iterator[str]:
    version = installed("celery")
    for part in _PARTS:
        if version < part.since and broker in part.brokers:
            yield f"{part.instead} Celery {'.'.join(map(str, part.since))} has it."
