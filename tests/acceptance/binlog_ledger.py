"""What a MySQL or MariaDB server says was committed, and in which order; shares no decoder with the listener.

The log is read once more afterwards, with mysql-replication's own decoder, and its length is held against a journal
that triggers write in the writers' own transactions.
"""

from __future__ import annotations

import datetime as dt
import json
import warnings
from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from pymysqlreplication import BinLogStreamReader
from pymysqlreplication.row_event import DeleteRowsEvent, UpdateRowsEvent, WriteRowsEvent

from cdc_tasks.routing.enqueued import CREATE_MARKS

if TYPE_CHECKING:
    from tests.support.mysql.source import MySQLDatabase

__all__ = ["TABLES", "committed", "journal"]

_MARKS: Final = "cdc_tasks_marks"
# The reader does not filter: a server that starts again gives a table's number in the log to another one.
_WATCHED: Final = frozenset({"accounts", "events", _MARKS})
Change = tuple[str, str, dict[str, Any] | None, dict[str, Any] | None]  # table, event, before, after

_COLUMNS: Final = (
    "id bigint NOT NULL AUTO_INCREMENT PRIMARY KEY, owner int NOT NULL, version int NOT NULL DEFAULT 1,"
    " amount decimal(30,10), touched datetime(6) NOT NULL DEFAULT current_timestamp(6), note varchar(2000)"
)


def _trigger(table: str, event: str) -> str:
    return (
        f"CREATE TRIGGER {table}_{event} AFTER {event} ON {table} FOR EACH ROW"
        f" INSERT INTO journal (what) VALUES ('{table} {event}')"
    )


TABLES: Final = (
    f"CREATE TABLE accounts ({_COLUMNS}) CHARACTER SET utf8mb4",
    f"CREATE TABLE events ({_COLUMNS}) CHARACTER SET utf8mb4",
    "CREATE TABLE unwatched (id bigint AUTO_INCREMENT PRIMARY KEY, note varchar(100))",
    CREATE_MARKS,
    "CREATE TABLE journal (id bigint AUTO_INCREMENT PRIMARY KEY, what varchar(50))",
    *(_trigger(table, event) for table in ("accounts", "events") for event in ("insert", "update", "delete")),
)


def journal(database: MySQLDatabase) -> Counter[str]:
    """Return how many rows of each table were inserted, updated and deleted, and how many tasks enqueued."""
    return Counter(dict(database.fetch("SELECT what, count(*) FROM journal GROUP BY what")))


def committed(database: MySQLDatabase, start: tuple[str, int]) -> list[Change]:
    """Return every change of the two tables, and every task, since a place in the log, in the log's order."""
    reader = BinLogStreamReader(
        connection_settings={
            "host": "127.0.0.1",
            "port": database.server.port,
            "user": "root",
            "password": "",
        },
        server_id=999_999,
        blocking=False,
        log_file=start[0],
        log_pos=start[1],
        resume_stream=True,
        only_events=[WriteRowsEvent, UpdateRowsEvent, DeleteRowsEvent],
        enable_logging=False,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # the library's own, of the driver's old names
            return [
                change
                for event in reader
                if event.schema == database.name and event.table in _WATCHED
                for row in event.rows
                if (change := _change(event, row)) is not None
            ]
    finally:
        reader.close()


def _change(event: Any, row: dict[str, Any]) -> Change | None:
    """Return what a row of the log says; None: a mark is deleted."""
    if event.table == _MARKS:
        is_new = isinstance(event, WriteRowsEvent)
        return _task(json.loads(row["values"]["says"])["enqueue"]) if is_new else None
    if isinstance(event, UpdateRowsEvent):
        return event.table, "update", _plain(row["before_values"]), _plain(row["after_values"])
    if isinstance(event, DeleteRowsEvent):
        return event.table, "delete", _plain(row["values"]), None
    return event.table, "insert", None, _plain(row["values"])


def _task(said: dict[str, Any]) -> Change:
    return "tasks", "enqueued", None, {"id": said["id"], "args": said["args"]}


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: _value(value) for name, value in row.items()}


def _value(value: Any) -> Any:
    if isinstance(value, Decimal):
        return format(value, "f")
    return value.isoformat() if isinstance(value, dt.datetime) else value
