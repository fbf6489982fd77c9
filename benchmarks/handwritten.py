"""A simple handwritten listener: psycopg2's replication cursor, wal2json, and `task.delay()` for each row.

python -m benchmarks.handwritten DATABASE_URL BROKER_URL SLOT
"""

from __future__ import annotations

import json
import sys
from typing import Any

import psycopg2
from celery import Celery
from psycopg2.extras import LogicalReplicationConnection

app = Celery("handwritten")


@app.task(name="bench.row")
def on_insert(row: dict[str, Any]) -> None:
    """Do nothing: no worker runs this task."""


def consume(message: Any) -> None:
    change = json.loads(message.payload)
    if change["action"] == "I":
        on_insert.delay({column["name"]: column["value"] for column in change["columns"]})
    message.cursor.send_feedback(flush_lsn=message.data_start)


def main() -> None:
    database_url, app.conf.broker_url, slot = sys.argv[1:]
    connection = psycopg2.connect(database_url, connection_factory=LogicalReplicationConnection)
    cursor = connection.cursor()
    cursor.start_replication(slot_name=slot, decode=True, options={"format-version": "2"})
    cursor.consume_stream(consume)


if __name__ == "__main__":
    main()
