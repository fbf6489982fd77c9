"""Celery settings with kombu's own Redis transport, to show why ours is needed."""

from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as _redis

from cdc_tasks.config.celery import *  # noqa: F403


class Transport(_redis.Transport):
    """kombu's transport, under a name that ours does not replace."""


TRANSPORT_ALIASES["redis"] = f"{__name__}:Transport"
