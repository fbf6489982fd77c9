"""The daemon that turns the database's log into Celery tasks."""
