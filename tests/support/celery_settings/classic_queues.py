"""Celery settings with classic queues; a worker keeps only a few messages with an ETA."""

from kombu import Exchange, Queue

from cdc_tasks.config.celery import *  # noqa: F403

task_queues = [
    Queue(name, Exchange("cdc_tasks", type="topic"), routing_key=name)
    for name in ("celery", "cdc_notifications", "cdc_cache", "cdc_bulk", "classic")
]
task_default_queue_type = "classic"
worker_eta_task_limit = 20
