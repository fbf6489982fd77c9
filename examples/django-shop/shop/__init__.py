"""The project: a shop with orders."""

from shop.celery import app as celery_app

__all__ = ["celery_app"]
