"""The Celery app."""

import os

from celery import Celery

import cdc_tasks

app = Celery(
    "orders_api",
    broker=os.environ.get("CELERY_BROKER_URL", "redis://localhost:6379/0"),
    include=["orders_api.tasks"],
)
app.conf.cdc_accept = ["orders_api.*"]  # what transactions may enqueue
cdc_tasks.install(app)  # no task dies with its worker; dead letters; health; tasks may be coroutines
