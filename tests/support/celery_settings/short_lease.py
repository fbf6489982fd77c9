"""Celery settings for tests in which workers die: their messages are restored within seconds."""

from cdc_tasks.config.celery import *  # noqa: F403
from cdc_tasks.config.celery import _is_rabbitmq, broker_transport_options

if not _is_rabbitmq:
    broker_transport_options = {
        **broker_transport_options,
        "visibility_timeout": 6,  # a busy machine renews it late
        "unacked_restore_interval": 1,
    }
