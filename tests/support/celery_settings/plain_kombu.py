"""Celery's settings with kombu's own Redis transport, to show what ours is for."""

from kombu.transport import TRANSPORT_ALIASES

from cdc_tasks.config.celery import *  # noqa: F403

TRANSPORT_ALIASES["redis"] = "kombu.transport.redis:Transport"
