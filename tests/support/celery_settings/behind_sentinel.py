"""Celery settings for a broker behind Sentinel, like a user's; a dead worker's messages are restored soon."""

from tests.support.celery_settings.short_lease import *  # noqa: F403
from tests.support.celery_settings.short_lease import broker_transport_options

broker_transport_options = {**broker_transport_options, "master_name": "mymaster"}
