"""The Celery app."""

import os

from celery import Celery

import cdc_tasks

app = Celery(
    "price_list",
    broker=os.environ.get("CELERY_BROKER_URL", "redis://localhost:6379/0"),
    include=["price_list.tasks", "cdc_tasks.master_cache"],
)
app.conf.cdc_routes = "price_list.routes:setup_router"
cdc_tasks.install(app)  # no task dies with its worker; dead letters; health
