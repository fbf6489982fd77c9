"""Celery's settings as users write them, for workers of the tests."""
