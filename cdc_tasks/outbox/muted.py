"""Muted changes: a transaction marks them in the database's log, and they fire nothing."""

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
    """Mute the changes of the block: they fire nothing except routes with `even_muted=True`.

    `connection` is the connection of the block's changes, inside a transaction: a SQLAlchemy Session or Connection, a
    Django connection, or a DB-API connection (psycopg 2 and 3, PyMySQL, mysqlclient). The changes are committed as
    usual, and the listener leaves them out.

    On PostgreSQL, in plain SQL, within the transaction:

        SELECT pg_logical_emit_message(true, 'cdc_tasks', '{"mute": true}');
        …
        SELECT pg_logical_emit_message(true, 'cdc_tasks', '{"mute": false}');   -- not needed at the end

    This needs PostgreSQL 14 or later, or 13 with wal2json, and no additional privileges.

    MySQL and MariaDB have no such messages. There the mark is a row of the table `cdc_tasks_marks` in the connection's
    database, which is deleted at once:

        SET @mark = UUID();
        INSERT INTO cdc_tasks_marks (id, says) VALUES (@mark, '{"mute": true}');   -- {"mute": false}: no longer
        DELETE FROM cdc_tasks_marks WHERE id = @mark;

    Raises MarkError on another database, if that table is missing, and for a connection in autocommit mode, where each
    statement is its own transaction.
    """
    check_transaction(connection)
    emit(connection, json.dumps({"mute": True}))
    yield
    emit(connection, json.dumps({"mute": False}))
