"""Celery's settings, for a checkout and for the image: change here what is to differ."""

from cdc_tasks.config.celery import *  # noqa: F403
