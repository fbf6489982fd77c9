"""Messages of real servers, kept for tests without a server.

`python -m tests.support.postgres.captures` records them again.

Each scenario is a list of statements, run on every server and read through each of its plugins. A capture has the
messages, and the answers of the catalogue about tables that a decoder needs. Partitioned tables are not recorded for
wal2json.
"""

from __future__ import annotations

import base64
import json
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from psycopg2.sql import SQL, Identifier

from harness.embedded_servers import PostgresServer
from harness.machine_servers import DebianPostgresServer
from listener.postgres.client.connection import connect, execute, fetch
from listener.postgres.codec.builtin_types import BUILTIN, ValueType
from listener.postgres.codec.pgoutput import PgOutputDecoder
from listener.postgres.wal2json.decoder import OPTIONS, Wal2JsonDecoder
from listener.postgres.wal2json.definition_history import TableName
from listener.postgres.wal2json.definitions import TableDefinitions

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from listener.postgres.client.connection import Connection
    from listener.postgres.codec.change import WALChange
    from listener.postgres.codec.decoder import Decoder

__all__ = ["SCENARIOS", "Capture", "captures", "read_slot", "scenarios_of"]

_DIRECTORY: Final = Path(__file__).parents[2] / "unit" / "captured"

PLUGIN_OPTIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "pgoutput": {"proto_version": "1", "publication_names": "everything"},
    "wal2json": OPTIONS,
}

_LONG: Final = "repeat('long ', 500)"  # stored outside of its row: TOAST
_SCHEMA: Final = '"Zoë\'s ""schema"""'
_TABLE: Final = f'{_SCHEMA}."Größe %s, {{}}"'
_TYPE: Final = f'{_SCHEMA}."a ""type"""'

SCENARIOS: Final[dict[str, list[str]]] = {
    "rows": [
        "CREATE TABLE tickets (id int PRIMARY KEY, title text, done bool DEFAULT false)",
        "INSERT INTO tickets VALUES (1, 'first'), (2, NULL)",
        "UPDATE tickets SET title = 'better', done = true WHERE id = 1",
        "UPDATE tickets SET id = 3 WHERE id = 2",
        "DELETE FROM tickets WHERE id = 3",
        "BEGIN; INSERT INTO tickets VALUES (9, 'never'); ROLLBACK",
    ],
    "identities": [
        'CREATE TABLE "full" (id int PRIMARY KEY, note text)',
        'ALTER TABLE "full" REPLICA IDENTITY FULL',
        "CREATE TABLE by_index (id int, code text NOT NULL UNIQUE, note text)",
        "ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_code_key",
        "CREATE TABLE nothing (id int, note text)",
        "ALTER TABLE nothing REPLICA IDENTITY NOTHING",
        """INSERT INTO "full" VALUES (1, 'a'), (2, NULL)""",
        """UPDATE "full" SET note = 'b'""",
        'DELETE FROM "full"',
        "INSERT INTO by_index VALUES (1, 'x', 'a')",
        "UPDATE by_index SET note = 'b'",
        "UPDATE by_index SET code = 'y'",
        "DELETE FROM by_index",
        "INSERT INTO nothing VALUES (1, 'a')",
    ],
    "toast": [
        "CREATE TABLE pages (id int PRIMARY KEY, title text, body text)",
        'CREATE TABLE "full" (id int PRIMARY KEY, title text, body text)',
        'ALTER TABLE "full" REPLICA IDENTITY FULL',
        "ALTER TABLE pages ALTER body SET STORAGE EXTERNAL",
        'ALTER TABLE "full" ALTER body SET STORAGE EXTERNAL',
        f"INSERT INTO pages VALUES (1, 'a', {_LONG}), (2, 'short', 'body')",
        "UPDATE pages SET title = 'b'",
        "UPDATE pages SET id = 3 WHERE id = 1",
        "UPDATE pages SET body = NULL WHERE id = 3",
        f"""INSERT INTO "full" VALUES (1, 'a', {_LONG})""",
        """UPDATE "full" SET title = 'b'""",
    ],
    "truncate": [
        "CREATE TABLE parents (id int PRIMARY KEY)",
        "CREATE TABLE children (id int PRIMARY KEY, parent int REFERENCES parents)",
        "CREATE TABLE others (id int)",
        "TRUNCATE others, parents RESTART IDENTITY CASCADE",
    ],
    "partitions": [
        "CREATE TABLE events (id int PRIMARY KEY, note text) PARTITION BY RANGE (id)",
        "CREATE TABLE events_low PARTITION OF events FOR VALUES FROM (0) TO (100)",
        "CREATE TABLE events_high (note text, id int NOT NULL)",  # in another order
        "ALTER TABLE events ATTACH PARTITION events_high FOR VALUES FROM (100) TO (200)",
        "INSERT INTO events VALUES (1, 'a')",
        "UPDATE events SET note = 'b'",
        "UPDATE events SET id = 101",
        "DELETE FROM events",
        "TRUNCATE events_low",
        "TRUNCATE events",
    ],
    "definitions": [
        "CREATE TABLE things (id int PRIMARY KEY, a text)",
        "INSERT INTO things VALUES (1, 'one')",
        "ALTER TABLE things ADD b int DEFAULT 7",
        "INSERT INTO things VALUES (2, 'two', 2)",
        "ALTER TABLE things RENAME a TO c",
        "INSERT INTO things VALUES (3, 'three', 3)",
        "ALTER TABLE things ALTER b TYPE text USING 'b' || b",
        "UPDATE things SET c = 'neu' WHERE id = 2",
        "ALTER TABLE things DROP c",
        "UPDATE things SET b = NULL WHERE id = 1",
        "ALTER TABLE things RENAME TO items",
        """BEGIN; INSERT INTO items VALUES (4); ALTER TABLE items ADD d bool;
           INSERT INTO items VALUES (5, '5', true); COMMIT""",
    ],
    "names": [
        f"CREATE SCHEMA {_SCHEMA}",
        f"CREATE TYPE {_TYPE} AS ENUM ('größer', '100 %')",
        f"""CREATE TABLE {_TABLE} ("Id." int PRIMARY KEY, "a ""b"" \\ c %" {_TYPE}, "日本" "char")""",
        f"INSERT INTO {_TABLE} VALUES (1, 'größer', 'x')",
        f"DELETE FROM {_TABLE}",
    ],
    "messages": [
        "CREATE TABLE tickets (id int PRIMARY KEY)",
        "BEGIN; SELECT pg_logical_emit_message(true, 'us', 'inside'); INSERT INTO tickets VALUES (1); COMMIT",
        "SELECT pg_logical_emit_message(false, 'us', 'outside')",
        "INSERT INTO tickets VALUES (2)",
    ],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """The messages that one server sent through one plugin."""

    scenario: str
    plugin: str
    version: int
    messages: list[str]  # base64
    tables: list[dict[str, Any]]  # wal2json: the catalogue's answers

    def __str__(self) -> str:
        return f"{self.plugin}-{self.version}"

    def payloads(self) -> list[bytes]:
        return [base64.b64decode(message) for message in self.messages]

    def decoder(self) -> Decoder:
        if self.plugin == "pgoutput":
            return PgOutputDecoder(_resolve, source="c0ffee")
        return Wal2JsonDecoder(_resolve, _Recorded(self.tables), lambda *_: True, source="c0ffee")

    def changes(self) -> list[WALChange]:
        """Decode all messages as those of one connection."""
        changes: list[WALChange] = []
        decoder = self.decoder()
        for payload in self.payloads():
            decoder.decode(payload, changes)
        return changes


def scenarios_of(plugin: str) -> list[str]:
    """Return the scenarios that a plugin can decode."""
    return [name for name in SCENARIOS if (plugin, name) != ("wal2json", "partitions")]


def captures(scenario: str) -> list[Capture]:
    """Return the captures of a scenario, one for each server and plugin."""
    paths = sorted(_DIRECTORY.glob(f"{scenario}-*.json"))
    return [Capture(**json.loads(path.read_text())) for path in paths]


def read_slot(connection: Connection, slot: str, plugin: str) -> list[bytes]:
    """Consume and return all messages of the slot."""
    options = [word for pair in PLUGIN_OPTIONS[plugin].items() for word in pair]
    rows = fetch(
        connection,
        "SELECT data FROM pg_logical_slot_get_binary_changes(%s, NULL, NULL, VARIADIC %s)",
        [slot, options],
    )
    return [bytes(data) for (data,) in rows]


def _resolve(oid: int) -> ValueType:
    return BUILTIN.get(oid) or ValueType(oid, "unknown")


class _Recorded(TableDefinitions):
    """Answers from a capture instead of from a server."""

    def __init__(self, tables: Iterable[Mapping[str, Any]]) -> None:
        super().__init__(_no_server, "a_slot")
        self._tables = {(table["schema"], table["name"]): table["columns"] for table in tables}

    def refresh(self, tables: Collection[TableName], *, lsn: int) -> bool:
        return False

    def is_certain(self, table: TableName, lsn: int) -> bool:
        return True

    def missing(
        self,
        table: TableName,
        sent: Collection[str],
        lsn: int,
        *,
        is_whole: bool,
        may_be_full: bool,
    ) -> dict[str, int]:
        return {name: oid for name, oid in self._tables.get(table, {}).items() if name not in sent}


def _no_server() -> Connection:
    raise AssertionError("a capture needs no server")


def _record(server: PostgresServer, plugin: str, scenario: str) -> Capture:
    database = f"{scenario}_{plugin}"
    with closing(connect(server.url)) as administrator:
        execute(administrator, SQL("CREATE DATABASE {}").format(Identifier(database)))
    with closing(connect(server.url_of(database))) as connection:
        execute(connection, "SET search_path = public")
        execute(
            connection,
            "CREATE PUBLICATION everything FOR ALL TABLES WITH (publish_via_partition_root = true)",
        )
        execute(connection, "SELECT pg_create_logical_replication_slot(%s, %s)", [database, plugin])
        for statement in SCENARIOS[scenario]:
            execute(connection, statement)
        messages = read_slot(connection, database, plugin)
        execute(connection, "SELECT pg_drop_replication_slot(%s)", [database])
        return Capture(
            scenario=scenario,
            plugin=plugin,
            version=connection.server_version // 10000,
            messages=[base64.b64encode(message).decode() for message in messages],
            tables=_describe_tables(connection) if plugin == "wal2json" else [],
        )


def _describe_tables(connection: Connection) -> list[dict[str, Any]]:
    tables = fetch(
        connection,
        "SELECT nspname, relname, json_object_agg(attname, atttypid::bigint ORDER BY attnum)"
        " FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace JOIN pg_attribute ON attrelid = c.oid"
        " WHERE relkind = 'r' AND nspname !~ '^(pg_|information_schema)' AND attnum > 0 AND NOT attisdropped"
        " GROUP BY 1, 2 ORDER BY 1, 2",
    )
    return [{"schema": schema, "name": name, "columns": columns} for schema, name, columns in tables]


def main() -> None:
    """Record every scenario on every server."""
    _DIRECTORY.mkdir(exist_ok=True)
    with PostgresServer() as newest, DebianPostgresServer() as debian:
        for server, plugin in ((newest, "pgoutput"), (debian, "pgoutput"), (debian, "wal2json")):
            for scenario in scenarios_of(plugin):
                capture = _record(server, plugin, scenario)
                path = _DIRECTORY / f"{scenario}-{capture}.json"
                path.write_text(json.dumps(asdict(capture), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
