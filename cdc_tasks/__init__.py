"""What Celery workers run: the handlers of changes, and what users' own tasks may use."""
