"""What only the server's catalogue knows: MariaDB's UUID, INET4, INET6 and JSON look like others in the log."""

from __future__ import annotations

import re

from listener.mysql.session import Session
from listener.mysql.table_map import ColumnType, TableMap

__all__ = ["needs_catalogue", "special_types"]

_JSON_CHECK = re.compile(r"json_valid\(`((?:[^`]|``)+)`\)", re.IGNORECASE)
_CANDIDATES = frozenset({ColumnType.STRING, ColumnType.BLOB})


def needs_catalogue(table: TableMap) -> bool:
    """Tell whether the log leaves a column's type open: a BINARY may be a UUID, a LONGTEXT a JSON."""
    return any(
        (column.type is ColumnType.STRING and column.metadata[1] in {4, 16} and column.collation == 63)
        or (column.type is ColumnType.BLOB and column.metadata[0] == 4 and column.collation != 63)
        for column in table.columns
    )


def special_types(session: Session, table: TableMap) -> dict[str, str]:
    """Return by column's name: uuid, inet4, inet6 or json, as the table is now."""
    arguments = [table.schema, table.name]
    found = {
        str(column): str(kind)
        for column, kind in session.fetch(
            "SELECT COLUMN_NAME, DATA_TYPE FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = %s"
            " AND TABLE_NAME = %s AND DATA_TYPE IN ('uuid', 'inet4', 'inet6')",
            arguments,
        )
    }
    checks = session.fetch(
        "SELECT CHECK_CLAUSE FROM information_schema.CHECK_CONSTRAINTS WHERE CONSTRAINT_SCHEMA = %s"
        " AND TABLE_NAME = %s",
        arguments,
    )
    for (clause,) in checks:
        if match := _JSON_CHECK.fullmatch(str(clause)):
            found[match[1].replace("``", "`")] = "json"
    return found
