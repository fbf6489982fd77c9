"""Celery's settings for a broker behind Sentinel, as a user writes them; what dead workers held comes back soon."""

from tests.support.celery_settings.short_lease import *  # noqa: F403
from tests.support.celery_settings.short_lease import broker_transport_options

broker_transport_options = {**broker_transport_options, "master_name": "mymaster"}
