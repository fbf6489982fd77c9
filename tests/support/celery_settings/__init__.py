"""Celery settings like those of users, for the tests' workers."""
