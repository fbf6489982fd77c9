"""Celery's settings with kombu's own Redis transport, to show what ours is for."""

from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as _redis

from cdc_tasks.config.celery import *  # noqa: F403


class Transport(_redis.Transport):
    """kombu's, under a name that is not among those that ours replaces."""


TRANSPORT_ALIASES["redis"] = f"{__name__}:Transport"
