"""Thousands of routes and tables: how often names are compared, and what is kept in memory."""

from __future__ import annotations

from fnmatch import fnmatchcase
from struct import pack
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_tasks.changes import EventType
from cdc_tasks.routing.router import BinlogRouter, RouteIndex
from listener.core.findings import CloseNames, State
from listener.postgres.codec import pgoutput
from listener.postgres.codec.builtin_types import BUILTIN
from listener.postgres.codec.pgoutput import PgOutputDecoder
from listener.postgres.tables.catalogue import Identity, ReplicaIdentity, Table
from listener.postgres.tables.selection import selected_tables
from listener.postgres.tables.table_findings import find_in_tables
from listener.publish.batching import Batcher
from tests.support.publishing import change, fire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from listener.postgres.codec.change import WALChange

_patterns = st.text("ab*?[]!-_", min_size=1, max_size=6)
_names = st.text("ab[]-_", min_size=1, max_size=6)


@given(
    st.lists(st.tuples(_patterns, _patterns), max_size=12), st.lists(st.tuples(_names, _names), max_size=6)
)
def test_the_index_finds_what_a_look_at_each_route_finds(
    patterns: list[tuple[str, str]], names: list[tuple[str, str]]
) -> None:
    router = BinlogRouter()
    for number, (schema, table) in enumerate(patterns):
        router.register(schema, table, EventType.ALL, f"task_{number % 3}")
    index = RouteIndex(router.routes)
    for schema, table in [*names, *patterns]:
        expected = [each for each in router.routes if each.matches(schema, table)]
        assert list(index.watching(schema, table)) == expected
        assert list(router.routes_for((schema, table, "insert"))) == expected


def test_the_keys_of_thousands_of_routes_differ() -> None:
    router = BinlogRouter()
    for number in range(3000):
        router.register("public", f"t_{number % 1000}", EventType.ALL, "task")
    assert len({route.id for route in router.routes}) == 3000


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names that are compared with a glob."""
    names: list[str] = []

    def counting(name: str, pattern: str) -> bool:
        names.append(name)
        return fnmatchcase(name, pattern)

    monkeypatch.setattr("cdc_tasks.routing.route.fnmatchcase", counting)
    return names


def _table(name: str, *, root: str | None = None) -> Table:
    key = ReplicaIdentity(table=("public", name), identity=Identity.DEFAULT, key=("id",))
    return Table(
        oid=0,
        name=("public", name),
        kind="r",
        is_logged=True,
        columns=("id", "kind"),
        stored_generated=frozenset(),
        virtual_generated=frozenset(),
        ancestors=(("public", root),) if root else (),
        own_identity=key,
        partitions=(),
        silent=(),
    )


@pytest.mark.parametrize("watched", ["t_{}", "t_{}_*", "other_{}"])
def test_looking_at_tables_and_routes_compares_no_more_names_than_there_are(
    compared: list[str], watched: str
) -> None:
    counts = []
    for count in (1000, 2000):
        router = BinlogRouter()
        tables = [_table(f"t_{number}_") for number in range(count)]
        tables += [_table(f"t_{number}", root=f"t_{number}_") for number in range(count)]
        for number in range(count):
            router.register("public", watched.format(number), EventType.ALL, f"task_{number}")
        compared.clear()
        found = list(find_in_tables(router.routes, tables, [table.name for table in tables], 18_00_00))
        assert found
        selected_tables(router.routes, tables)
        for table in tables:
            router.routes_for((*table.name, "insert"))
        counts.append(len(compared))
    assert counts[1] <= 2 * counts[0] <= 20 * 2 * 1000


def test_of_many_missing_tables_the_first_are_told_what_was_meant() -> None:
    router = BinlogRouter()
    for number in range(500):
        router.register("public", f"tickets_{number}", EventType.ALL, "task")
    findings = list(find_in_tables(router.routes, [], [("public", "tickets")], 18_00_00))
    assert [each.state for each in findings] == [State.PROBLEM] * 500
    assert sum("Did you mean public.tickets?" in each.found for each in findings) == 10
    assert CloseNames(["tickets"]).meant("tickts") == " Did you mean tickets?"
    assert CloseNames(["tickets"]).meant("elephants") == ""


def _relation(oid: int, name: str) -> bytes:
    columns = b"".join(b"\1%b\0%b" % (column, pack(">Ii", 23, -1)) for column in (b"id", b"a", b"b", b"c"))
    return b"R%bpublic\0%b\0d%b%b" % (pack(">I", oid), name.encode(), pack(">H", 4), columns)


def _insert(oid: int) -> bytes:
    return b"I%bN%b%b" % (pack(">I", oid), pack(">H", 4), b"t\0\0\0\1" + b"7" + 3 * b"n")


def test_of_many_tables_only_those_whose_rows_came_lately_are_kept_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pgoutput, "_MOST_COMPILED", 1400)  # a hundred tables of four columns
    decoder = PgOutputDecoder(BUILTIN.__getitem__, source="c0ffee")
    changes: list[WALChange] = []
    decoder.decode(b"B" + pack(">QqI", 1, 0, 1), changes)
    for oid in range(500):
        decoder.decode(_relation(oid, f"t_{oid}"), changes)
        decoder.decode(_insert(oid), changes)
        assert len(decoder._tables) <= 100
    decoder.decode(_insert(0), changes)  # announced once, and never again on this connection
    assert [each.table for each in changes] == [*(f"t_{oid}" for oid in range(500)), "t_0"]
    assert changes[-1].row == {"id": 7, "a": None, "b": None, "c": None}


def test_a_table_that_is_announced_as_it_was_is_not_compiled_again_and_one_that_changed_is() -> None:
    decoder = PgOutputDecoder(BUILTIN.__getitem__, source="c0ffee")
    changes: list[WALChange] = []
    decoder.decode(b"B" + pack(">QqI", 1, 0, 1), changes)
    for name in ("before", "before", "after"):
        decoder.decode(_relation(1, name), changes)
        decoder.decode(_insert(1), changes)
    first, second, third = (each._kind.table for each in changes)
    assert first is second
    assert third.name == "after"


def test_a_step_looks_only_at_the_batches_that_it_fills() -> None:
    router = BinlogRouter()
    for number in range(300):
        router.register("public", f"t_{number}", EventType.ALL, "task", batch=100)
    batcher = Batcher("held", longest=600)
    lengths = [len(batcher.batch(fire(router, [change(n + 1, table=f"t_{n}")])).saving) for n in range(300)]
    assert lengths == [2] * 300  # that there is a batch, and its first change
    assert batcher.batch(()).saving == []
    assert len(batcher.release_all().tasks) == 300
