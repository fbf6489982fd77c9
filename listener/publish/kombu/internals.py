"""The private parts of kombu that we use; checked before anything is sent."""

from __future__ import annotations

from importlib import metadata
from typing import Any, Final

from kombu.transport import redis

from cdc_tasks.versions import OldCeleryError, check_versions
from listener.publish.task_message import EnvelopeError

__all__ = ["check_kombu", "expiry_of"]

_NEEDED: Final = ("_put", "_put_fanout", "_q_for_pri", "_get_message_priority")  # of the channel


def check_kombu() -> None:
    """Raise EnvelopeError if this kombu would send the template of a message instead of returning it."""
    try:
        check_versions()
    except OldCeleryError as error:
        raise EnvelopeError(error.message, hint=error.hint, code="kombu_version") from error
    if missing := [name for name in _NEEDED if not hasattr(redis.Channel, name)]:
        raise EnvelopeError(
            f"The listener cannot create messages with kombu {metadata.version('kombu')}, which has no "
            f"{', '.join(missing)}.",
            hint="pip install 'celery>=5.4,<5.8' 'kombu>=5.3.4,<5.8'",
            code="kombu_version",
        )


def expiry_of(channel: Any, queue: str) -> int | None:
    """Return the milliseconds after which an unused queue is deleted: the argument `x-expires` of Celery's queue.

    None if it stays; kombu before 5.7 deletes none on Redis.
    """
    found: int | None = getattr(channel, "_expires", {}).get(queue)
    return found
