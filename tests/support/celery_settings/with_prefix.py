"""Celery settings for a database whose keys all have the application's prefix; leases are short."""

from tests.support.celery_settings.short_lease import *  # noqa: F403
from tests.support.celery_settings.short_lease import broker_transport_options

broker_transport_options = {**broker_transport_options, "global_keyprefix": "team:"}
