"""What the source itself says was committed, and in which order: the truth that a queue is held against.

Two sources of it, and no code of the listener's: a journal that triggers write in the writers' own transactions, so
that whatever is rolled back is rolled back there too; and the server's write-ahead log, read with its own `pg_waldump`,
which is where the order of commits stands.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import psycopg2

if TYPE_CHECKING:
    from harness.embedded_servers import PostgresServer

__all__ = ["KEEP_LOG", "Committed", "Ledger"]

KEEP_LOG: Final = {
    "wal_keep_size": "20GB"
}  # a server's settings: `pg_waldump` needs the log of the whole run

# `accounts` gives old rows in full, `events` only their key, and long bodies are stored out of line (TOAST).
_TABLES: Final = """
CREATE TABLE accounts (
  id bigserial PRIMARY KEY, owner int NOT NULL, version int NOT NULL DEFAULT 1, open bool NOT NULL DEFAULT true,
  amount numeric(30, 10), touched timestamptz NOT NULL DEFAULT clock_timestamp(), tags text[], note jsonb
);
ALTER TABLE accounts REPLICA IDENTITY FULL;
CREATE TABLE events (
  id bigserial PRIMARY KEY, owner int NOT NULL, version int NOT NULL DEFAULT 1, title text, body text
);
ALTER TABLE events ALTER body SET STORAGE EXTERNAL;
CREATE TABLE unwatched (id bigserial PRIMARY KEY, body text);

CREATE TABLE journal (
  number bigserial PRIMARY KEY, transaction xid NOT NULL DEFAULT pg_current_xact_id()::xid,
  "table" text NOT NULL, event text NOT NULL, before jsonb, after jsonb
);
CREATE FUNCTION note_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO journal ("table", event, before, after) VALUES (
    TG_TABLE_NAME, lower(TG_OP),
    CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END, CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END
  );
  RETURN NULL;
END $$;
CREATE FUNCTION note_truncate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO journal ("table", event) VALUES (TG_TABLE_NAME, 'truncate');
  RETURN NULL;
END $$;
"""

_TRIGGERS: Final = """
CREATE TRIGGER note_row AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION note_row();
CREATE TRIGGER note_truncate AFTER TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION note_truncate();
"""

_COMMIT: Final = re.compile(r"tx: +(\d+), lsn: ([0-9A-F]+)/([0-9A-F]+), .* desc: COMMIT ")

_JOURNAL: Final = """
SELECT transaction::text, "table", event, before::text, after::text FROM journal ORDER BY transaction::text, number
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """One row that was inserted, updated or deleted, one table that was truncated, or one task that was enqueued."""

    position: tuple[int, int]  # of the transaction's commit in the log; which of its changes
    table: str
    event: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None


class Ledger:
    """The tables that writers write to in one database, and the record of what came of it."""

    tables: Final = ("accounts", "events")

    def __init__(self, server: PostgresServer, url: str) -> None:
        """`server` runs with the settings `KEEP_LOG`; `url` is that of an empty database of it."""
        self._server = server
        self._url = url
        with self._connect() as connection, connection.cursor() as cursor:
            cursor.execute(_TABLES)
            for table in self.tables:
                cursor.execute(_TRIGGERS.format(table=table))
        self._start = self._end_of_log()

    def read(self) -> list[Committed]:
        """Return all that was committed, in commit order."""
        commits = self._commits()
        with self._connect() as connection, connection.cursor() as cursor:
            cursor.execute(_JOURNAL)
            committed = [
                Committed(
                    position=(commits[transaction], ordinal),
                    table=table,
                    event=event,
                    before=_row(before),
                    after=_row(after),
                )
                for transaction, rows in groupby(cursor, key=lambda row: row[0])
                for ordinal, (_, table, event, before, after) in enumerate(rows)
            ]
        return sorted(committed, key=lambda change: change.position)

    def count(self) -> dict[str, int]:
        """Return how many changes of each kind were committed so far."""
        with self._connect() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT event, count(*) FROM journal GROUP BY event")
            return dict(cursor.fetchall())

    def _connect(self) -> psycopg2.extensions.connection:
        return psycopg2.connect(self._url, options="-c TimeZone=UTC")

    def _end_of_log(self) -> str:
        with self._connect() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_current_wal_lsn()::text")
            return cursor.fetchone()[0]

    def _commits(self) -> dict[str, int]:
        """Return where the log has each transaction's commit, by the transaction's number.

        `pg_waldump` ends with an error where the log ends: what counts is that each transaction is found. It is
        told the files: of its own choice it looks into any, also into one that the server made for later.
        """
        program, directory = self._server.binaries / "pg_waldump", self._server.data_dir / "pg_wal"
        command = [program, "--path", directory, "--rmgr=Transaction", "--start", self._start, *self._files()]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        commits = {xid: int(high, 16) << 32 | int(low, 16) for xid, high, low in _found(result.stdout)}
        if missing := self._transactions() - commits.keys():
            raise AssertionError(f"no commit in the log of {sorted(missing)[:5]}: {result.stderr}")
        return commits

    def _files(self) -> tuple[str, str]:
        with self._connect() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_walfile_name(%s), pg_walfile_name(pg_current_wal_lsn())", [self._start])
            return cursor.fetchone()

    def _transactions(self) -> set[str]:
        with self._connect() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT DISTINCT transaction::text FROM journal")
            return {xid for (xid,) in cursor}


def _found(dump: str) -> Iterator[tuple[str, str, str]]:
    for match in _COMMIT.finditer(dump):
        yield match[1], match[2], match[3]


def _row(text: str | None) -> dict[str, Any] | None:
    return None if text is None else json.loads(text, parse_float=Decimal)
