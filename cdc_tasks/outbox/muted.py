"""Changes that fire nothing: a transaction says so in the database's log."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cdc_tasks.outbox.transaction import check_transaction, emit

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["muted"]


@contextmanager
def muted(connection: Any) -> Iterator[None]:
    """Let the changes of the block fire nothing, but for routes with `even_muted=True`.

    `connection` is what the block's changes are made with, inside a transaction: a Session or Connection of
    SQLAlchemy's, a connection of Django's, or a DB-API connection (psycopg 2 and 3, PyMySQL, mysqlclient). The changes
    are committed as ever, and the listener leaves them out.

    On PostgreSQL, in plain SQL, within the transaction:

        SELECT pg_logical_emit_message(true, 'cdc_tasks', '{"mute": true}');
        …
        SELECT pg_logical_emit_message(true, 'cdc_tasks', '{"mute": false}');   -- not needed at the end

    PostgreSQL 14 and later, or 13 with wal2json. It needs no right beyond those of any role.

    MySQL and MariaDB have no such message. So the mark is a row of the table `cdc_tasks_marks` in the connection's
    database, which is deleted at once:

        SET @mark = UUID();
        INSERT INTO cdc_tasks_marks (id, says) VALUES (@mark, '{"mute": true}');   -- {"mute": false}: no longer
        DELETE FROM cdc_tasks_marks WHERE id = @mark;

    Raises MarkError on another database, if that table is missing, and for a connection in autocommit mode: there each
    statement is a transaction of its own.
    """
    check_transaction(connection)
    emit(connection, json.dumps({"mute": True}))
    yield
    emit(connection, json.dumps({"mute": False}))
