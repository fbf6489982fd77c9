"""The search index: SQLite's FTS5, in a file of its own. With Elasticsearch, two functions are others."""

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

_FILE = os.environ.get("SEARCH_INDEX", "catalog.sqlite")


@contextmanager
def _opened() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(_FILE, timeout=60)) as connection, connection:  # commits, or rolls back
        connection.execute("CREATE VIRTUAL TABLE IF NOT EXISTS products USING fts5 (name, description)")
        yield connection


def write(rows: Iterable[Mapping[str, Any]], *, deleted: Iterable[int]) -> None:
    """Put rows in the place of those with the same id, and remove others: all of it, or nothing."""
    with _opened() as connection:
        connection.executemany("DELETE FROM products WHERE rowid = ?", [(each,) for each in deleted])
        connection.executemany(
            "INSERT OR REPLACE INTO products (rowid, name, description) VALUES (:id, :name, :description)",
            rows,
        )


def search(words: str) -> list[tuple[int, str]]:
    """Return id and name of what is found, the best first."""
    query = "SELECT rowid, name FROM products WHERE products MATCH ? ORDER BY rank LIMIT 10"
    with _opened() as connection:
        return connection.execute(query, [words]).fetchall()


def size() -> int:
    """Return how many products are in the index."""
    with _opened() as connection:
        (found,) = connection.execute("SELECT count(*) FROM products").fetchone()
    return int(found)
