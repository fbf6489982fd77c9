"""Celery settings with a queue for each name in `-Q`."""

from cdc_tasks.config.celery import *  # noqa: F403

task_create_missing_queues = True
