"""The publication: the tables and columns that the server sends.

It has exactly the tables that routes select, with all their columns. Lists of columns are optional (CDC_COLUMN_LISTS,
version 15 and later): a list that leaves out a part of a table's replica identity makes the application's own UPDATE
and DELETE fail, and ALTER TABLE … DROP COLUMN … CASCADE of a listed column removes the table from the publication
(manual, "Logical Replication", "Column Lists").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog
from psycopg2.sql import SQL, Composable, Composed, Identifier, Literal

from cdc_tasks.changes import EventType
from listener.core.source import GapError, SourceError, SourceLostError
from listener.postgres.client.connection import Connection, execute, fetch
from listener.postgres.client.errors import PermissionDeniedError
from listener.postgres.hints import ACCEPT_GAP
from listener.postgres.tables.catalogue import Identity, Table, TableName
from listener.postgres.tables.selection import SelectedTable

__all__ = [
    "Publication",
    "add_tables",
    "drop_tables",
    "ensure_publication",
    "gap_of_publication",
    "plan_publication",
    "read_publication",
    "set_options",
    "statements_for",
    "with_sql",
]

log = structlog.get_logger()

_NEED_A_KEY: Final = {EventType.UPDATE, EventType.DELETE}
_LOCK_TIMEOUT: Final = "5s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A publication, actual or wanted."""

    tables: Mapping[TableName, frozenset[str] | None]  # the list of columns; None: no list
    events: frozenset[EventType]
    generated_columns: bool | None  # stored ones are published; None: the server's version has no such option
    via_root: bool = True  # a partition's changes come under the name of its root
    all_tables: bool = False
    schemas: frozenset[str] = frozenset()  # schemas with all tables published
    filtered: frozenset[TableName] = frozenset()  # with a WHERE clause: rows are missing
    name: str = field(default="", compare=False)
    oid: int = field(default=0, compare=False)
    members: Mapping[TableName, int] = field(default_factory=dict, compare=False)  # pg_publication_rel.oid

    def suffices_for(self, wanted: Publication) -> bool:
        """Return whether everything wanted is published; more may be published."""
        return self.has_options_of(wanted) and not self.lacks(wanted)

    def has_options_of(self, wanted: Publication) -> bool:
        """Return whether it has the wanted events and options, or more."""
        return (
            self.events >= wanted.events
            and (self.via_root or not wanted.via_root)
            and bool(self.generated_columns or not wanted.generated_columns)
        )

    def lacks(self, wanted: Publication) -> list[TableName]:
        """Return the wanted tables that are not published, or not with all the columns."""
        return [table for table, columns in wanted.tables.items() if not self._has(table, columns)]

    def is_wide(self, table: TableName) -> bool:
        """Return whether the table is published with all tables, or with all of its schema."""
        return self.all_tables or (table[0] in self.schemas and table not in self.tables)

    def _has(self, table: TableName, columns: frozenset[str] | None) -> bool:
        if self.is_wide(table):
            return True
        if table not in self.tables or table in self.filtered:
            return False
        listed = self.tables[table]
        return listed is None or (columns is not None and listed >= columns)


def plan_publication(
    selected: Sequence[SelectedTable], version: int, *, column_lists: bool = False
) -> Publication:
    """Return the wanted publication; `version` is libpq's number (150004)."""
    columns = _columns if column_lists and version >= 15_00_00 else _all_columns
    events = frozenset[EventType]().union(*(each.events for each in selected))
    return Publication(
        tables={each.table.name: columns(each, events, version) for each in selected},
        events=events,
        generated_columns=True if version >= 18_00_00 else None,
    )


def _all_columns(_selected: SelectedTable, _events: frozenset[EventType], _version: int) -> None:
    return None


def _columns(selected: SelectedTable, events: frozenset[EventType], version: int) -> frozenset[str] | None:
    table = selected.table
    if selected.columns is None:
        return None
    sendable = frozenset(table.columns) - table.virtual_generated
    if version < 18_00_00:
        sendable -= table.stored_generated
    if events & _NEED_A_KEY and not _may_be_narrowed(table, sendable):
        return None
    columns = (selected.columns | table.key) & sendable
    # A list of all columns would only prevent the application from dropping one.
    return None if not columns or columns == sendable else columns


def _may_be_narrowed(table: Table, sendable: frozenset[str]) -> bool:
    identities = (table.own_identity, *table.partitions)
    return all(each.identity is not Identity.FULL for each in identities) and table.key <= sendable


def ensure_publication(
    connection: Connection, name: str, wanted: Publication, *, needed: Publication | None = None
) -> None:
    """Create the publication, or update it if necessary.

    If the listener's role may not change it, it stays unchanged, provided that it has what is `needed`, which may be
    less than wanted. Raise PermissionDeniedError with the SQL for a role that may, SourceLostError if a lock was not
    free soon.
    """
    found = read_publication(connection, name)
    if found == wanted:
        return
    suffices = found is not None and found.suffices_for(needed or wanted)
    if found is not None and (found.all_tables or found.schemas) and found.suffices_for(wanted):
        return  # someone's choice, and no table is ever missing in it
    statements = statements_for(name, found, wanted)
    try:
        _apply(connection, statements)
    except (PermissionDeniedError, SourceLostError) as error:
        if connection.closed or not suffices:
            raise with_sql(error, statements, connection) from error
        log.info("publication_left_as_it_is", publication=name, reason=error.message)
    else:
        _log_changes(name, found, wanted)


def statements_for(name: str, found: Publication | None, wanted: Publication) -> Sequence[Composed]:
    """Return the statements that change `found` to `wanted`."""
    publication = Identifier(name)
    tables = SQL(", ").join(_table(table, columns) for table, columns in sorted(wanted.tables.items()))
    if found is None:
        what = SQL("FOR TABLE {} ").format(tables) if wanted.tables else SQL("")
        return [SQL("CREATE PUBLICATION {} {}WITH ({})").format(publication, what, _options(wanted))]
    # The options first: without publish_via_partition_root a partitioned table's columns cannot be listed.
    statements = [set_options(name, wanted)]
    if found.all_tables:
        return statements
    if wanted.tables:
        statements.append(SQL("ALTER PUBLICATION {} SET TABLE {}").format(publication, tables))
    elif found.tables:
        statements.append(drop_tables(name, found.tables))
    return statements


def add_tables(name: str, tables: Mapping[TableName, frozenset[str] | None]) -> Composed:
    """Return the statement that adds the tables, and locks no other ones."""
    listed = SQL(", ").join(_table(table, columns) for table, columns in sorted(tables.items()))
    return SQL("ALTER PUBLICATION {} ADD TABLE {}").format(Identifier(name), listed)


def drop_tables(name: str, tables: Iterable[TableName]) -> Composed:
    """Return the statement that removes the tables."""
    listed = SQL(", ").join(_table(table, None) for table in sorted(tables))
    return SQL("ALTER PUBLICATION {} DROP TABLE {}").format(Identifier(name), listed)


def set_options(name: str, wanted: Publication) -> Composed:
    """Return the statement that sets events and options."""
    return SQL("ALTER PUBLICATION {} SET ({})").format(Identifier(name), _options(wanted))


def _table(name: TableName, columns: frozenset[str] | None) -> Composable:
    table = SQL("ONLY {}").format(Identifier(*name))
    if columns is None:
        return table
    return SQL("{} ({})").format(table, SQL(", ").join(map(Identifier, sorted(columns))))


def _options(wanted: Publication) -> Composed:
    events = ", ".join(event.value for event in EventType if event in wanted.events)
    via_root = SQL("true" if wanted.via_root else "false")
    options = SQL("publish = {}, publish_via_partition_root = {}").format(Literal(events), via_root)
    if wanted.generated_columns:
        options += SQL(", publish_generated_columns = stored")
    return options


def _apply(connection: Connection, statements: Sequence[Composed]) -> None:
    """Run the statements as one transaction that does not wait long for locks."""
    lock_timeout = SQL("SET LOCAL lock_timeout = {}").format(Literal(_LOCK_TIMEOUT))
    execute(connection, SQL("; ").join([lock_timeout, *statements]))


def with_sql(
    error: PermissionDeniedError | SourceLostError, statements: Sequence[Composed], connection: Connection
) -> SourceError | SourceLostError:
    """Return the error with a hint: the SQL for a role that may run it, or the owner of the lock."""
    if isinstance(error, SourceLostError):
        message = f"The publication could not be changed: {error.message}"
        return SourceLostError(message, hint=error.hint, code=error.code)
    sql = "\n".join(f"{statement.as_string(connection)};" for statement in statements)
    return PermissionDeniedError(
        error.message, hint=f"Let the owner of the tables, or a superuser, run:\n{sql}"
    )


def _log_changes(name: str, found: Publication | None, wanted: Publication) -> None:
    before: Mapping[TableName, frozenset[str] | None] = found.tables if found else {}
    log.info(
        "publication_created" if found is None else "publication_changed",
        publication=name,
        added=[".".join(table) for table in wanted.tables if table not in before],
        removed=[".".join(table) for table in before if table not in wanted.tables],
        columns_changed=[
            ".".join(table)
            for table in wanted.tables
            if table in before and before[table] != wanted.tables[table]
        ],
    )


_PUBLICATION: Final = "SELECT to_jsonb(p) FROM pg_publication p WHERE pubname = %s"

_TABLES: Final = """
SELECT n.nspname, c.relname, to_jsonb(r), CASE WHEN to_jsonb(r) ->> 'prattrs' IS NOT NULL THEN (
    SELECT json_object_agg(a.attnum, a.attname) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0) END
FROM pg_publication p
JOIN pg_publication_rel r ON r.prpubid = p.oid
JOIN pg_class c ON c.oid = r.prrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE p.pubname = %s
"""

_SCHEMAS: Final = """
SELECT n.nspname FROM pg_publication p
JOIN pg_publication_namespace s ON s.pnpubid = p.oid
JOIN pg_namespace n ON n.oid = s.pnnspid
WHERE p.pubname = %s
"""

_EVENTS: Final = {
    "pubinsert": EventType.INSERT,
    "pubupdate": EventType.UPDATE,
    "pubdelete": EventType.DELETE,
    "pubtruncate": EventType.TRUNCATE,
}


def read_publication(connection: Connection, name: str) -> Publication | None:
    """Return the current publication; None if there is none."""
    rows = fetch(connection, _PUBLICATION, [name])
    if not rows:
        return None
    ((own,),) = rows
    members = fetch(connection, _TABLES, [name])
    has_schemas = connection.info.server_version >= 15_00_00
    schemas = fetch(connection, _SCHEMAS, [name]) if has_schemas else []
    return Publication(
        tables={
            (schema, table): _listed(member.get("prattrs"), names) for schema, table, member, names in members
        },
        events=frozenset(event for column, event in _EVENTS.items() if own[column]),
        generated_columns=own["pubgencols"] == "s" if "pubgencols" in own else None,
        via_root=own.get("pubviaroot", False),
        all_tables=own["puballtables"],
        schemas=frozenset(schema for (schema,) in schemas),
        filtered=frozenset((schema, table) for schema, table, member, _ in members if member.get("prqual")),
        name=name,
        oid=int(own["oid"]),
        members={(schema, table): int(member["oid"]) for schema, table, member, _ in members},
    )


def _listed(numbers: Sequence[int] | None, names: Mapping[str, str]) -> frozenset[str] | None:
    return None if numbers is None else frozenset(names[str(number)] for number in numbers)


def gap_of_publication(publication: str, start: str, end: str) -> GapError:
    """Return the gap of a dropped publication."""
    return GapError(
        f"The publication {publication} no longer exists. What was committed after {start} "
        f"and before it is recreated (now: {end}) cannot be read.",
        hint=ACCEPT_GAP,
        code="publication_gone",
    )
