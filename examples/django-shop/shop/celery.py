"""The project's Celery app."""

import os

from celery import Celery

import cdc_tasks

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")

app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
cdc_tasks.install(app)  # no task dies with its worker; dead letters; health
