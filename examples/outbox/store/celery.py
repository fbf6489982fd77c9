"""The Celery app."""

import os

from celery import Celery

import cdc_tasks

app = Celery(
    "store", broker=os.environ.get("CELERY_BROKER_URL", "redis://localhost:6379/0"), include=["store.tasks"]
)
app.conf.cdc_accept = ["store.tasks.post_event"]  # what transactions may enqueue
cdc_tasks.install(app)  # retries with back-off, dead letters, order by key, no task dies with its worker
