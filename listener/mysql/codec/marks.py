"""A transaction's marks in the log: rows of a table that has no other purpose.

A row of `cdc_tasks_marks` has JSON in its column `says`: `{"mute": true}` for the changes after it, or
`{"enqueue": {…}}`, a task. The table may be in any database. `cdc_tasks.outbox.transaction` writes such rows.
"""

from __future__ import annotations

import json
from typing import Any, Final

from listener.mysql.codec.table import Row, Table

__all__ = ["MARKS_TABLE", "read_mark"]

MARKS_TABLE: Final = "cdc_tasks_marks"
_SAYS: Final = "says"


def read_mark(table: Table, row: Row) -> dict[str, Any]:
    """Return the content of a row; empty if it is not a JSON object."""
    place = table.index.get(_SAYS)
    try:
        found = json.loads(row[place]) if place is not None else None
    except (ValueError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}
