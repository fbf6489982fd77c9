"""The story of `examples/search-index`."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from examples.stage import Stage

__all__ = ["OTHER_DATABASE", "TRY", "VARIABLES", "play"]

VARIABLES: Final = {"SEARCH_INDEX": "{files}/catalog.sqlite", "CDC_JOURNAL": "{files}/journal"}
OTHER_DATABASE: Final = None
TRY: Final = (
    "psql $DATABASE_URL -c \"UPDATE products SET name = 'Chair' WHERE id = 3\"",
    "python -m catalog search chair",
)


def play(stage: Stage) -> None:
    """Fill the index, change rows, and fire old changes again."""
    began = datetime.now(UTC).isoformat()  # the journal begins a moment before
    stage.step("The index is empty, the table has products: a backfill sends each row once")
    products = stage.sql("SELECT count(*) FROM products")[0][0]
    stage.until("all rows in the index", lambda: _size(stage) == products)
    stage.run("python -m catalog search lamp AND 1234")
    stage.step("Rows change: up to 500 changes are one task, and one write")
    stage.sql(
        "INSERT INTO products (name, description) VALUES ('Kettle', 'Boils')",
        "UPDATE products SET name = 'Teapot' WHERE name = 'Kettle'",
        "UPDATE products SET description = 'A cheap lamp' WHERE id BETWEEN 1000 AND 1500",
        "DELETE FROM products WHERE name = 'Lamp no. 1234'",
    )
    stage.until("the deletion in the index", lambda: not _found(stage, "1234"))
    stage.until("the last name in the index", lambda: _found(stage, "teapot"))
    stage.run("python -m catalog search teapot OR kettle OR 1234")
    stage.step("All these changes come again, the old ones too: the index does not return to an older state")
    replayed = stage.run(
        f"python -m listener -A catalog replay --since {began} --task catalog.tasks.index_products --watch"
    )
    tasks = re.findall(r"(\d+) task", replayed)[-1]
    stage.until("the replayed tasks", lambda: stage.count("worker", " changes, 0 rows written") >= int(tasks))
    stage.see("worker", " changes, 0 rows written")
    stage.run("python -m catalog search teapot OR kettle OR 1234")


def _size(stage: Stage) -> int:
    return int(_ask(stage, "SELECT count(*) FROM products"))


def _found(stage: Stage, word: str) -> bool:
    return bool(_ask(stage, "SELECT count(*) FROM products WHERE products MATCH ?", word))


def _ask(stage: Stage, query: str, *values: str) -> int:
    with closing(sqlite3.connect(stage.environment["SEARCH_INDEX"], timeout=60)) as connection:
        try:
            (found,) = connection.execute(query, values).fetchone()
        except sqlite3.OperationalError:  # no worker has created it yet
            return 0
        return int(found)
