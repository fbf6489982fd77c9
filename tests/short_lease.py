"""Celery's settings for tests in which workers die: what they held comes back within seconds."""

from celeryconfig import *  # noqa: F403
from celeryconfig import _is_rabbitmq, broker_transport_options

if not _is_rabbitmq:
    broker_transport_options = {
        **broker_transport_options,
        "visibility_timeout": 3,
        "unacked_restore_interval": 1,
    }
