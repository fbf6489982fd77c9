"""PostgreSQL for the benchmarks."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from typing import Any

import psycopg2

from benchmarks.routes import TABLES
from benchmarks.stage import DESCRIPTION, TITLE, Stage
from harness.embedded_servers import PostgresServer
from harness.listener_process import mortal
from harness.machine_servers import DebianPostgresServer

__all__ = ["PUBLICATION", "PostgresStage"]

PUBLICATION = "bench"

_SETTINGS = {  # these favour no contender: the server has enough memory, and few full-page writes
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",
    "logical_decoding_work_mem": "64MB",
    "autovacuum": "off",
}

_SCHEMA = """
CREATE TABLE narrow (id bigserial PRIMARY KEY, number int, name text);
CREATE TABLE tickets (
  id bigserial PRIMARY KEY, title text, assigned_to_id bigint, created_by bigint, status text, priority text,
  created_at timestamptz, flag bool, description text
);
CREATE TABLE wide (
  id bigserial PRIMARY KEY, {columns}
);
"""
_WIDE = {
    "int": "n",
    "text": "'some text of thirty characters'",
    "timestamptz": "now()",
    "numeric(12,2)": "n / 7.0",
}
_WIDE_COLUMNS = {f"{kind[:3]}_{number}": kind for number in range(10) for kind in _WIDE}

_VALUES = {
    "narrow": ("number, name", "n, 'item ' || n"),
    "tickets": (
        "title, assigned_to_id, created_by, status, priority, created_at, flag, description",
        f"'{TITLE}', 5, 17, 'open', 'high', now(), true, '{DESCRIPTION}'",
    ),
    "wide": (", ".join(_WIDE_COLUMNS), ", ".join(_WIDE[kind] for kind in _WIDE_COLUMNS.values())),
}


class PostgresStage(Stage):
    """Debian's PostgreSQL with wal2json, without fsync, with three tables and a publication."""

    def __init__(self) -> None:
        super().__init__()
        self.postgres: PostgresServer = DebianPostgresServer(settings=_SETTINGS)

    @property
    def url(self) -> str:
        return self.postgres.url

    @property
    def version(self) -> str:
        return str(self.fetch("SHOW server_version")[0][0]).split()[0]

    def _open(self, stack: ExitStack) -> None:
        stack.enter_context(self.postgres)
        self._create_tables()

    def _create_tables(self) -> None:
        columns = ", ".join(f"{name} {kind}" for name, kind in _WIDE_COLUMNS.items())
        self.run(_SCHEMA.format(columns=columns))
        self.run(f"CREATE PUBLICATION {PUBLICATION} FOR TABLE {', '.join(TABLES)}")

    def fetch(self, query: str, *arguments: object) -> list[tuple[Any, ...]]:
        connection = psycopg2.connect(self.postgres.url)
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                cursor.execute(query, arguments or None)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def run(self, statement: str, *arguments: object) -> None:
        self.fetch(statement, *arguments)

    def fill(self, table: str, rows: int, *, transaction: int) -> None:
        """Insert `rows` rows, `transaction` of them in each transaction."""
        columns, values = _VALUES[table]
        self.run(f"""
            DO $$
            BEGIN
              FOR i IN 1 .. {rows // transaction} LOOP
                INSERT INTO {table} ({columns}) SELECT {values} FROM generate_series(1, {transaction}) AS n;
                COMMIT;
              END LOOP;
            END $$
        """)  # noqa: S608 - our own names and values
        self.run("CHECKPOINT")

    def write_steadily(self, per_second: int, seconds: float) -> subprocess.Popen[bytes]:
        """Start `pgbench`, which commits `per_second` rows a second, one in each transaction."""
        columns, values = _VALUES["tickets"]
        script = self.postgres.home / "insert.sql"
        script.write_text(f"INSERT INTO tickets ({columns}) VALUES ({values});\n")  # noqa: S608 - our own text
        options = [
            "-n",
            "-c",
            "4",
            "-j",
            "1",
            "-R",
            str(per_second),
            "-T",
            str(int(seconds)),
            "-f",
            str(script),
        ]
        return subprocess.Popen(
            mortal([str(self.postgres.binaries / "pgbench"), *options, self.postgres.url]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
