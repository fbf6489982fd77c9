"""docs/reference/payload.md: what a task gets, and what a value of each database type is in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

from cdc_tasks.broker.delivery_marks import REPLAY_HEADER, REPLAYED_HEADER
from cdc_tasks.changes import EventType, RowChange
from cdc_tasks.routing.contexts import CONTEXT_HEADER
from cdc_tasks.routing.message_groups import HOLD_HEADER, KEY_HEADER, RANK_HEADER
from reference.text import code, page, table
from reference.values import (
    MARIADB_TYPES,
    MYSQL_NUMBERS,
    MYSQL_TEXTS,
    MYSQL_TIMES,
    POSTGRES,
    POSTGRES_INTERNAL,
    POSTGRES_SPECIAL,
    Case,
)

__all__ = ["payload_page", "wordless_fields"]

_HEAD = """
A task of a route gets one argument: the change, as a JSON object. With `args=` or `kwargs=` of the
[route](python.md#cdc_tasksbinlogrouter) it gets these values instead, with `batch=` a list of them. All of it is JSON:
a worker can read it without cdc-tasks. `RowChange.from_message(change)` makes an object from it.
"""

# What each field of the message says.
_FIELDS: Final = {
    "id": ("text", "Unique, and the same on every replay: made only from source, position and time of the commit."),
    "schema": ("text", "PostgreSQL: the schema. MySQL and MariaDB: the database."),
    "table": ("text", "The table. PostgreSQL: for a partition, the partitioned table."),
    "event": ("text", ", ".join(f"`{each.value}`" for each in EventType if each not in {EventType.ALL, EventType.ENQUEUED})),
    "before": (
        "object or null",
        "The old row of `update` and `delete`, with the columns that are in the log: see `REPLICA IDENTITY` and "
        "`binlog_row_image`. Otherwise null.",
    ),
    "after": ("object or null", "The new row. Null for `delete` and `truncate`."),
    "unavailable": ("list of texts", "Columns whose value the source did not send. This is not NULL: such a column is not in `after`."),
    "position": ("text", "Its place in the log. Compare two only with `cdc_tasks.changes.position_key`."),
    "committed_at": ("text", "ISO 8601, in UTC, with microseconds."),
    "context": ("object", "The transaction's [context](../context.md). Absent if there is none."),
}  # fmt: skip

# What the headers of a task's message say beside Celery's own.
_HEADERS: Final = {
    CONTEXT_HEADER: "The transaction's [context](../context.md), an object.",
    KEY_HEADER: "The key of the task's [message group](../tasks.md#order-by-key).",
    HOLD_HEADER: 'True with `on_failure="hold"`, otherwise absent.',
    RANK_HEADER: "The order of messages that wait for a key.",
    REPLAY_HEADER: "The id of the [replay](../replay.md) that has fired the task.",
    REPLAYED_HEADER: "When a dead letter was sent again.",
    "traceparent": "The span of the transaction or of the listener, with [traces](../tracing.md) on; `tracestate` and `baggage` "
    "may be there, too.",
}

_RULES = """
| JSON | Python |
| --- | --- |
| number without a fraction | `int` |
| number with a fraction or an exponent | `float` |
| text | `str` |
| `true`, `false` | `bool` |
| list | `list` |
| object | `dict` |
| `null` | `None`: the value is NULL |

A value that JSON cannot represent is the server's own text. So a value never stops the stream. `numeric` and `decimal`
are texts, because a float would lose digits: `Decimal(change["after"]["price"])`. Times with a zone are in UTC. A
PostgreSQL type that is not listed below is the server's own text: types of an extension (`hstore`, `vector`), enums,
composite types. A domain is like its base type, an array is a list. A `json` document that a worker could not load
(nested deeper than 200 levels, an integer of more than 4,300 digits) is its text.
"""


def payload_page() -> str:
    """Return the page."""
    return page("What a task gets: message and types", _HEAD, *_parts())


def _parts() -> Iterator[str]:
    yield f"```json\n{json.dumps(_example(), indent=2)}\n```"
    rows = [(f"`{name}`", kind, words) for name, (kind, words) in _FIELDS.items()]
    yield table(("field", "type", "meaning"), rows)
    yield "## Headers of the message"
    yield "In a bound task: `self.request.headers`. In addition to Celery's own headers there may be:"
    yield table(("header", "meaning"), [(f"`{name}`", words) for name, words in _HEADERS.items()])
    yield "## Values"
    yield _RULES
    yield "## PostgreSQL"
    yield _types(POSTGRES)
    yield "### Special values, arrays, types with a length"
    yield _types(POSTGRES_SPECIAL, is_each=True)
    yield "### Types of the catalogue"
    yield _types(POSTGRES_INTERNAL)
    yield "## MySQL and MariaDB"
    yield (
        "BLOB and BINARY are base64, as are geometries in the server's own bytes. An invalid date or time "
        "(`0000-00-00`) is the server's own text. A TIMESTAMP is in UTC, a DATETIME has no zone."
    )
    yield _types([*MYSQL_NUMBERS, *MYSQL_TIMES, *MYSQL_TEXTS])
    yield "### Invalid dates and times"
    yield _types([each for each in MYSQL_TIMES if _is_no_date(each)], is_each=True)
    yield "### Only MariaDB"
    yield _types(MARIADB_TYPES)


def _example() -> dict[str, Any]:
    change = RowChange(
        id="6b02f19d5f9f4859-16B3748-303D94F1B8A40-0",
        schema="public",
        table="orders",
        event=EventType.UPDATE,
        before={"id": 42, "status": "open", "total": "19.90"},
        after={"id": 42, "status": "paid", "total": "19.90"},
        position="0/16B3748:0",
        committed_at=datetime(2026, 11, 22, 10, 0, 0, 123456, tzinfo=UTC),
        context={"user_id": 7},
    )
    return change.to_message()


def wordless_fields() -> set[str]:
    """Return the fields of the message that have no words here, and those that have some and are not in it."""
    return _example().keys() ^ _FIELDS.keys()


def _is_no_date(case: Case) -> bool:
    return (
        isinstance(case[2], str)
        and re.search(r"-00|0000-|-31 |-29 |02-31", case[2]) is not None
        and "T" not in case[2]
    )


def _types(cases: Iterable[Case], *, is_each: bool = False) -> str:
    """Return the table of types; unless `is_each`, with one value of each type."""
    rows: dict[str, tuple[str, ...]] = {}
    for kind, literal, value in cases:
        shown = json.dumps(value, ensure_ascii=False)
        if len(shown) <= _LONGEST and not (literal.startswith("'0000") and not is_each):
            key = f"{kind} {literal}" if is_each else re.sub(r"\(.*\)| NULL| CHARACTER SET \w+", "", kind)
            name = kind.removesuffix(" NULL")
            rows.setdefault(key, (f"`{name}`", _code(literal), _code(shown), f"`{type(value).__name__}`"))
    return table(("type", "value in SQL", "JSON", "Python"), rows.values())


_LONGEST: Final = 90


def _code(text: str) -> str:
    return code(text) or "(empty)"
