"""Names as SQL wants them, in text that a person reads and pastes."""

from __future__ import annotations

import re

__all__ = ["quoted", "quoted_table"]

_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")


def quoted(name: str) -> str:
    """Quote a name where SQL would read it as another one."""
    return name if _PLAIN.fullmatch(name) else '"' + name.replace('"', '""') + '"'


def quoted_table(table: tuple[str, str]) -> str:
    """Return `schema.table`."""
    return ".".join(map(quoted, table))
