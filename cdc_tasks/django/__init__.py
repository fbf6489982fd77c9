"""cdc-tasks in a Django project: put "cdc_tasks.django" into INSTALLED_APPS.

`manage.py cdc run|check|routes|status|…` then uses the project's database, routes and Celery app (docs/django.md).
Nothing else of ours imports this package, and it imports nothing of Django's before that is set up.
"""

from cdc_tasks.django.registry import accept, register

__all__ = ["accept", "register"]
