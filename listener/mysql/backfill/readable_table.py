"""The table that a backfill reads, the key for the reading order, and whether the account may read it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from listener.core.backfill import BackfillRefusedError, Key, TablePlan, check_where
from listener.core.findings import Finding, State
from listener.core.source import SourceError
from listener.mysql.backfill.read_column import ReadColumn, quoted_name, read_layout
from listener.mysql.charsets import Decode
from listener.mysql.client.connection import Connection, account, fetch, fetch_value
from listener.mysql.codec.table import Table
from listener.mysql.codec.table_map import Column, ColumnType, TableMap
from listener.mysql.errors import PermissionDeniedError
from listener.mysql.tables.catalogue import JSON_CHECK

__all__ = [
    "ReadableTable",
    "check_right",
    "chunk_statement",
    "count_rows",
    "find_in_reads",
    "find_table",
    "plan_table",
    "read_columns",
    "refused_condition",
]

_Name = tuple[str, str]  # schema and table


class ReadableTable(NamedTuple):
    """A table that a backfill can read."""

    schema: str
    name: str
    key_index: str
    key: tuple[ReadColumn, ...]
    columns: tuple[ReadColumn, ...]

    @property
    def quoted(self) -> str:
        """The table for FROM."""
        return _quoted((self.schema, self.name))

    @property
    def key_names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.key)

    @property
    def order(self) -> str:
        """For ORDER BY. An ENUM and a SET are in the order of their numbers there, as in the index."""
        return ", ".join(quoted_name(column.name) for column in self.key)

    def after(self, last: Key) -> str:
        """Return the condition for the rows after a key, in a form for which the server uses the index."""
        return _behind(
            [(column.ordered, column.literal(text)) for column, text in zip(self.key, last, strict=True)]
        )

    def key_of(self, row: Sequence[bytes]) -> Key:
        """Return the key of a row, which repeats the key's columns at its end."""
        values = row[len(self.columns) :]
        return tuple(column.key_text(value) for column, value in zip(self.key, values, strict=True))

    def compiled(self, decoder: Callable[[str], Decode]) -> Table:
        """Return the converter from rows to JSON; `decoder` returns that of a character set."""
        columns = tuple(
            Column(name=column.name, type=ColumnType.BLOB, metadata=b"", nullable=True)
            for column in self.columns
        )
        layouts = [read_layout(column, decoder) for column in self.columns]
        return Table(TableMap(schema=self.schema, name=self.name, columns=columns), layouts, is_selected=True)


def _behind(parts: Sequence[tuple[str, str]]) -> str:
    """Return `(a, b) > (x, y)` without a row comparison: for that the servers read the index from its start."""
    (name, value), *rest = parts
    if not rest:
        return f"{name} > {value}"
    return f"{name} >= {value} AND ({name} > {value} OR ({name} = {value} AND {_behind(rest)}))"


def chunk_statement(table: ReadableTable, *, where: str | None, after: Key | None, limit: int) -> str:
    """Return the SELECT of a chunk: all columns, then those of the key."""
    columns = [column.selected for column in table.columns] + [column.key_selected for column in table.key]
    conditions = [f"({where}\n)"] if where is not None else []
    if after is not None:
        conditions.append(f"({table.after(after)})")
    # A condition may have its own index. Otherwise this index saves the server from sorting the table.
    index = f" FORCE INDEX ({quoted_name(table.key_index)})" if where is None else ""
    chosen = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return (
        f"SELECT {', '.join(columns)} FROM {table.quoted}{index}{chosen} ORDER BY {table.order} LIMIT {limit}"  # noqa: S608 - names from the catalogue, literals, and the person's condition
    )


def find_table(connection: Connection[Any], name: _Name, *, mariadb: bool) -> ReadableTable:
    """Return the table, with the key for the reading order. Raise BackfillRefusedError, SourceError, SourceLostError.

    Within a transaction, the columns stay unchanged until its end.
    """
    rows = fetch(connection, _TABLE, list(name))
    if not rows or rows[0][0] not in {"BASE TABLE", "SYSTEM VERSIONED"}:
        raise _no_table(connection, name)
    check_right(connection, name)
    if str(rows[0][1]).lower() != "innodb":
        raise BackfillRefusedError(
            f"The table {'.'.join(name)} has the engine {rows[0][1]}: only InnoDB shows a table as of one "
            "position in the log.",
            hint=f"ALTER TABLE {_quoted(name)} ENGINE = InnoDB;",
            code="backfill_engine",
        )
    columns = read_columns(connection, name, mariadb=mariadb)
    index, key = _find_key(connection, name, {column.name: column for column in columns})
    return ReadableTable(*name, index, key, columns)


def _no_table(connection: Connection[Any], name: _Name) -> BackfillRefusedError:
    return BackfillRefusedError(
        f"There is no table {'.'.join(name)} that {account(connection)} may see.",
        hint=f"Name a table of a route, with its schema: python -m listener routes\nOr: {_grant(connection, name)}",
        code="backfill_no_table",
    )


def check_right(connection: Connection[Any], name: _Name) -> None:
    """Raise BackfillRefusedError if the account may not read the table; otherwise its definition stays unchanged."""
    try:
        fetch(connection, f"SELECT 1 FROM {_quoted(name)} LIMIT 0")  # noqa: S608 - quoted
    except PermissionDeniedError:
        raise BackfillRefusedError(
            f"{account(connection)} may not read the table {'.'.join(name)}.",
            hint=_grant(connection, name),
            code="backfill_no_right",
        ) from None


def _grant(connection: Connection[Any], name: _Name) -> str:
    return f"GRANT SELECT ON {_quoted(name)} TO {account(connection)};"


def read_columns(connection: Connection[Any], name: _Name, *, mariadb: bool) -> tuple[ReadColumn, ...]:
    """Return the columns that a SELECT can name. Raise SourceError, SourceLostError."""
    rows = fetch(connection, _COLUMNS, list(name))
    documents = set()
    if mariadb and any(kind == "longtext" for _, kind, *_ in rows):
        for (clause,) in fetch(connection, _CHECKS, list(name)):
            if match := JSON_CHECK.fullmatch(str(clause)):
                documents.add(match[1].replace("``", "`"))
    return tuple(
        ReadColumn(
            name=str(column),
            type=str(kind).lower(),
            full_type=str(full).lower(),
            charset=None if charset is None else str(charset),
            digits=int(digits or 0),
            is_document=column in documents and kind == "longtext",
        )
        for column, kind, full, charset, digits in rows
    )


def _find_key(
    connection: Connection[Any], name: _Name, columns: dict[str, ReadColumn]
) -> tuple[str, tuple[ReadColumn, ...]]:
    """Return the primary key, or the unique key with the fewest columns, all of them NOT NULL and whole."""
    indexes: dict[str, list[str]] = {}
    unfit = set()
    for index, column, part, nullable, kind in fetch(connection, _KEYS, list(name)):
        indexes.setdefault(str(index), []).append(str(column))
        if column not in columns or part is not None or nullable == "YES" or kind != "BTREE":
            unfit.add(index)
    usable = [each for each in indexes if each not in unfit]
    if not usable:
        raise BackfillRefusedError(
            f"The table {'.'.join(name)} has no primary key, and no unique key with NOT NULL columns: there is no "
            "order for reading it in chunks.",
            hint=f"ALTER TABLE {_quoted(name)} ADD PRIMARY KEY (…);\n"
            f"Or: ALTER TABLE {_quoted(name)} ADD UNIQUE (…); with NOT NULL columns",
            code="backfill_no_key",
        )
    best = min(usable, key=lambda each: (each != "PRIMARY", len(indexes[each]), each))
    return best, tuple(columns[column] for column in indexes[best])


# --- For check and --dry-run ----------------------------------------------------------------------------


def find_in_reads(connection: Connection[Any], tables: Sequence[_Name]) -> Iterator[Finding]:
    """Yield a warning for each table of a route with READ that the account may not read."""
    for name in tables:
        if not fetch(connection, _TABLE, list(name)):
            continue  # another finding reports it
        try:
            check_right(connection, name)
        except BackfillRefusedError as error:
            yield Finding(
                what=f"table {'.'.join(name)}",
                state=State.WARNING,
                code="backfill_no_right",
                found=f"a route takes EventType.READ, but {account(connection)} may not read the table",
                hint=error.hint or "",
            )


def plan_table(connection: Connection[Any], name: _Name, where: str | None, limit: int) -> TablePlan:
    """Return the plan for reading the table. Raise BackfillRefusedError, SourceError, SourceLostError."""
    check_where(where)
    table = find_table(connection, name, mariadb=_is_mariadb(connection))
    try:
        plan = json.loads(str(fetch_value(connection, f"EXPLAIN FORMAT=JSON {_counting(table, where)}")))
        statement = chunk_statement(table, where=where, after=None, limit=limit)
        lines = fetch(connection, f"EXPLAIN {statement}")
    except PermissionDeniedError:
        raise
    except SourceError as error:
        if where is None:
            raise
        raise refused_condition(where, error) from error
    return TablePlan(
        schema=table.schema,
        table=table.name,
        key=table.key_names,
        estimate=_estimate(connection, name) if where is None else _rows_in(plan),
        columns=tuple(column.name for column in table.columns),
        query_plan=tuple("  ".join("-" if part is None else str(part) for part in line) for line in lines),
    )


def refused_condition(where: str, error: SourceError) -> BackfillRefusedError:
    """Return the error for a condition that the server does not accept."""
    return BackfillRefusedError(
        f"The database does not accept the condition {where!r}: {error.message}",
        hint="Write a condition as after WHERE, with the table's columns. Your own functions need their database, "
        "e.g. app.my_function(id).",
        code="backfill_where",
    )


def count_rows(connection: Connection[Any], name: _Name, where: str | None) -> int:
    """Return how many rows a backfill would find now: the server reads all of them."""
    table = find_table(connection, name, mariadb=_is_mariadb(connection))
    return int(fetch_value(connection, _counting(table, where)))


def _is_mariadb(connection: Connection[Any]) -> bool:
    return "mariadb" in str(fetch_value(connection, "SELECT @@version")).lower()


def _counting(table: ReadableTable, where: str | None) -> str:
    chosen = "" if where is None else f" WHERE ({where}\n)"
    return f"SELECT count(*) FROM {table.quoted}{chosen}"  # noqa: S608 - quoted, and the person's condition


def _estimate(connection: Connection[Any], name: _Name) -> int:
    return int(fetch(connection, _TABLE, list(name))[0][2] or 0)


def _rows_in(plan: Any) -> int:
    """Return how many rows the server's plan expects: MySQL and MariaDB, and their versions, name it differently."""
    if isinstance(plan, list):
        return max(map(_rows_in, plan), default=0)
    if not isinstance(plan, dict):
        return 0
    own = plan.get("rows_produced_per_join")
    if own is None and "rows" in plan:
        own = float(plan["rows"]) * float(plan.get("filtered", 100)) / 100
    if own is None:
        own = plan.get("estimated_rows", 0)
    return max([int(float(own)), *map(_rows_in, plan.values())])


def _quoted(name: _Name) -> str:
    return ".".join(map(quoted_name, name))


_TABLE: Final = (
    "SELECT TABLE_TYPE, ENGINE, TABLE_ROWS FROM information_schema.TABLES"
    " WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s"
)
_COLUMNS: Final = (
    "SELECT COLUMN_NAME, DATA_TYPE, COLUMN_TYPE, CHARACTER_SET_NAME, DATETIME_PRECISION FROM information_schema.COLUMNS"
    " WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s ORDER BY ORDINAL_POSITION"
)
_CHECKS: Final = (
    "SELECT CHECK_CLAUSE FROM information_schema.CHECK_CONSTRAINTS"
    " WHERE CHECK_CLAUSE LIKE 'json%%' AND CONSTRAINT_SCHEMA = %s AND TABLE_NAME = %s"
)
_KEYS: Final = (
    "SELECT INDEX_NAME, COLUMN_NAME, SUB_PART, NULLABLE, INDEX_TYPE FROM information_schema.STATISTICS"
    " WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s AND NON_UNIQUE = 0 ORDER BY INDEX_NAME, SEQ_IN_INDEX"
)
