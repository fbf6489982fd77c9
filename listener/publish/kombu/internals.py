"""What we use of kombu beyond its public interface; checked before anything is sent."""

from __future__ import annotations

from importlib import metadata
from typing import Final

from kombu.transport import redis
from kombu.utils.text import version_string_as_tuple

from listener.publish.task_message import EnvelopeError

__all__ = ["check_kombu"]

_OLDEST: Final = (5, 7)
_NEEDED: Final = (
    "create_publish_batch",
    "_put",
    "_put_fanout",
)  # of the channel: they take `_publish_batch`


def check_kombu() -> None:
    """Raise EnvelopeError if this kombu would send the template of a message, instead of giving it to us."""
    missing = [name for name in _NEEDED if not hasattr(redis.Channel, name)]
    version = metadata.version("kombu")
    if missing or version_string_as_tuple(version)[:2] < _OLDEST:
        without = f", which has no {', '.join(missing)}" if missing else ""
        raise EnvelopeError(
            f"The listener cannot make messages with kombu {version}{without}.",
            hint="pip install 'kombu>=5.7,<5.8'",
            code="kombu_version",
        )
