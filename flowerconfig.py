"""Flower's settings, each with its reason; variables `FLOWER_…` and the command line go first."""

import os

from cdc_tasks import metrics

# Without a password its pages are open to whoever reaches them, and tasks can be started from there: so only
# this machine does. Elsewhere: FLOWER_ADDRESS=0.0.0.0 together with FLOWER_BASIC_AUTH=user:password.
address = os.environ.get("FLOWER_ADDRESS", "127.0.0.1")
# Each task seen is kept in memory; Flower's own 100,000 take hundreds of megabytes.
max_tasks = int(os.environ.get("FLOWER_MAX_TASKS", "10000"))
# /metrics tells of dead letters and parked changes too. Prometheus needs no password for it: there are only numbers.
metrics.expose()
