"""The task for taskiq, with acknowledgement (Redis streams). As a program it queues tasks: NUMBER, PAYLOAD as JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys

from taskiq.serializers import ORJSONSerializer  # in a virtual environment of its own
from taskiq_redis import RedisStreamBroker

from benchmarks.runner_apps.record import note

broker = RedisStreamBroker(os.environ["CELERY_BROKER_URL"]).with_serializer(ORJSONSerializer())


@broker.task("nothing")
async def nothing(_payload: object) -> None:
    note()


async def _fill(number: int, payload: object) -> None:
    await broker.startup()
    for _ in range(number):
        await nothing.kiq(payload)
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(_fill(int(sys.argv[1]), json.loads(sys.argv[2])))
