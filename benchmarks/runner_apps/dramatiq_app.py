"""The task for dramatiq. As a program it queues tasks: NUMBER, and the payload as JSON."""

from __future__ import annotations

import json
import os
import sys

import dramatiq  # in a virtual environment of its own
from dramatiq.brokers.redis import RedisBroker

from benchmarks.runner_apps.record import note

dramatiq.set_broker(RedisBroker(url=os.environ["CELERY_BROKER_URL"]))


@dramatiq.actor
def nothing(_payload: object) -> None:
    note()


if __name__ == "__main__":
    for _ in range(int(sys.argv[1])):
        nothing.send(json.loads(sys.argv[2]))
