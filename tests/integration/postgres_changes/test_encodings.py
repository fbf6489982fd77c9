"""Databases of other encodings than UTF-8."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.conftest import fresh_database
from tests.support.postgres.source import PostgresSource

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def source_of_encoding(source: PostgresSource, encoding: str) -> Iterator[PostgresSource]:
    """Another database on the source's server, read through the same plugin."""
    with (
        fresh_database(source.database.server, encoding=encoding) as database,
        PostgresSource(database, source.plugin) as other,
    ):
        yield other


@pytest.mark.parametrize("encoding", ["LATIN1", "EUC_JP"])
def test_a_database_of_another_encoding(source: PostgresSource, encoding: str) -> None:
    text = "Größe" if encoding == "LATIN1" else "日本"
    with source_of_encoding(source, encoding) as other:
        other.execute(f'CREATE TABLE "t_{text}" (id int PRIMARY KEY, "{text}" text)')
        other.watch("t_*")
        other.execute(f"INSERT INTO \"t_{text}\" VALUES (1, '{text} 1')")
        (change,) = other.changes(1)
        assert (change.table, change.after) == (f"t_{text}", {"id": 1, text: f"{text} 1"})


def test_bytes_for_which_utf_8_has_no_character_do_not_stop_the_stream(source: PostgresSource) -> None:
    with source_of_encoding(source, "WIN1252") as other:
        other.execute("CREATE TABLE things (id int PRIMARY KEY, a text)")
        other.watch("things")
        other.execute(
            "INSERT INTO things VALUES (1, 'Größe €')", "INSERT INTO things VALUES (2, 'ö' || chr(129))"
        )
        assert [change.row["a"] for change in other.changes(2)] == ["Größe €", r"ö\x81"]


def test_a_database_without_an_encoding_gives_text_whatever_its_bytes(source: PostgresSource) -> None:
    with source_of_encoding(source, "SQL_ASCII") as other:
        other.execute("CREATE TABLE things (id int PRIMARY KEY, a text, b text[], c json)")
        other.watch("things")
        other.execute(
            r"""INSERT INTO things VALUES (1, E'caf\xe9', ARRAY[E'\xe9', 'e'], E'["\xe9"]')""",
            r"INSERT INTO things VALUES (2, E'caf\xc3\xa9', NULL, NULL)",
        )
        first, second = other.changes(2)
        assert first.after == {"id": 1, "a": r"caf\xe9", "b": [r"\xe9", "e"], "c": r'["\xe9"]'}
        assert second.after == {"id": 2, "a": "café", "b": None, "c": None}
