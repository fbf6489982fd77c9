"""Names as SQL wants them, in text that a person reads and pastes."""

from __future__ import annotations

import re

__all__ = ["RESERVED", "quoted", "quoted_table"]

_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")

# Keywords that are no name without quotes: those that `pg_get_keywords()` calls reserved, of all versions.
_WORDS = """
all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate collation
column concurrently constraint create cross current_catalog current_date current_role current_schema current_time
current_timestamp current_user default deferrable desc distinct do else end except false fetch for foreign freeze
from full grant group having ilike in initially inner intersect into is isnull join lateral leading left like limit
localtime localtimestamp natural not notnull null offset on only or order outer overlaps placing primary references
returning right select session_user similar some symmetric system_user table tablesample then to trailing true
union unique user using variadic verbose when where window with
"""
RESERVED = frozenset(_WORDS.split())


def quoted(name: str) -> str:
    """Quote a name where SQL would read it as another one."""
    if _PLAIN.fullmatch(name) and name not in RESERVED:
        return name
    return '"' + name.replace('"', '""') + '"'


def quoted_table(table: tuple[str, str]) -> str:
    """Return `schema.table`."""
    return ".".join(map(quoted, table))
