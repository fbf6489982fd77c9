"""Celery's settings with kombu's own Redis transport, to show what ours is for."""

from kombu.transport import TRANSPORT_ALIASES

from celeryconfig import *  # noqa: F403

TRANSPORT_ALIASES["redis"] = "kombu.transport.redis:Transport"
