"""The Celery app."""

import os

from celery import Celery

import cdc_tasks

app = Celery(
    "audit", broker=os.environ.get("CELERY_BROKER_URL", "redis://localhost:6379/0"), include=["audit.tasks"]
)
cdc_tasks.install(app)  # no task dies with its worker; dead letters; health
