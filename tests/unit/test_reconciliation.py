"""What became of the noted tables: decided from values alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cdc_tasks.changes import EventType
from listener.postgres.tables.catalogue import Identity, ReplicaIdentity, Table
from listener.postgres.tables.checkpoint_notes import Notes, TableNote
from listener.postgres.tables.publication import Publication, plan_publication
from listener.postgres.tables.reconciliation import (
    Survey,
    find_losses,
    find_renamed,
    former_names,
    note_tables,
    unchanged_tables,
)
from listener.postgres.tables.selection import selected_tables
from listener.postgres.tables.sync import gap_start
from listener.router import BinlogRouter, Route

T, U = ("public", "t"), ("public", "u")


def routes_to(*tables: str) -> tuple[Route, ...]:
    router = BinlogRouter()
    for table in tables:
        router.register("public", table, EventType.ALL, "a.task")
    return router.routes


def table(oid: int, name: tuple[str, str]) -> Table:
    return Table(
        oid=oid,
        name=name,
        kind="r",
        is_logged=True,
        columns=("id",),
        stored_generated=frozenset(),
        virtual_generated=frozenset(),
        ancestors=(),
        own_identity=ReplicaIdentity(table=name, identity=Identity.DEFAULT, key=("id",)),
        partitions=(),
        silent=(),
    )


def survey(
    routes: tuple[Route, ...],
    tables: dict[int, tuple[str, str]],
    members: dict[tuple[str, str], int],
    **options: Any,
) -> Survey:
    defaults = {"events": frozenset(EventType) - {EventType.ALL}, "generated_columns": None, "oid": 99}
    publication = Publication(tables=dict.fromkeys(members), members=members, **{**defaults, **options})
    return Survey(
        end=1000,
        names=tables,
        selected=selected_tables(routes, [table(oid, name) for oid, name in tables.items()]),
        publication=publication,
    )


def noted(routes: tuple[Route, ...], tables: dict[int, tuple[str, str]], **options: Any) -> Notes:
    seen = survey(routes, tables, {name: oid + 100 for oid, name in tables.items()}, **options)
    return note_tables(Notes(), seen, routes, position=0, only=lambda _oid: True)


def lost(notes: Notes, now: Survey) -> list[tuple[str, bool]]:
    wanted = plan_publication(now.selected, 18_00_00)
    return [
        (loss.table, loss.is_provable)
        for loss in find_losses(notes, now, replace(wanted, generated_columns=None))
    ]


@pytest.mark.parametrize(
    ("tables", "members", "expected"),
    [
        ({1: T}, {T: 101}, []),
        ({1: T}, {}, [("public.t", True)]),  # taken out
        ({1: T}, {T: 102}, [("public.t", False)]),  # taken out, and put back
        ({2: T}, {}, [("public.t", True)]),  # created again
        ({2: T}, {T: 102}, [("public.t", True)]),  # created again, and published by hand
        ({1: U, 2: T}, {U: 101}, [("public.t", True)]),  # swapped
        ({}, {}, []),  # dropped: what was written before comes
    ],
)
def test_what_was_published_and_is_not_is_lost(tables: Any, members: Any, expected: Any) -> None:
    routes = routes_to("t")
    assert lost(noted(routes, {1: T}), survey(routes, tables, members)) == expected


def test_a_table_of_a_new_route_is_not_lost_and_one_of_an_old_glob_is() -> None:
    notes = noted(routes_to("t"), {1: T})
    assert lost(notes, survey(routes_to("t", "u"), {1: T, 2: U}, {T: 101})) == []
    notes = noted(routes_to("*"), {1: T})
    assert lost(notes, survey(routes_to("*"), {1: T, 2: U}, {T: 101})) == [("public.u", True)]


def test_in_a_publication_of_all_tables_none_is_ever_lost() -> None:
    routes = routes_to("*")
    notes = noted(routes, {1: T}, all_tables=True)
    assert lost(notes, survey(routes, {1: T, 2: U}, {}, all_tables=True)) == []
    notes = noted(routes, {1: T}, schemas=frozenset({"public"}))
    assert lost(notes, survey(routes, {2: T, 3: U}, {}, schemas=frozenset({"public"}))) == []


def test_a_publication_created_again_or_without_events_has_lost_changes_of_all_tables() -> None:
    routes = routes_to("t")
    assert lost(noted(routes, {1: T}), survey(routes, {1: T}, {T: 101}, oid=98))[0] == ("all tables", False)
    inserts = survey(routes, {1: T}, {T: 101}, events=frozenset({EventType.INSERT}))
    assert lost(noted(routes, {1: T}), inserts) == [("all tables", False)]


def test_without_notes_nothing_is_lost() -> None:
    routes = routes_to("*")
    assert lost(Notes(), survey(routes, {1: T}, {})) == []


def test_a_renamed_table_needs_a_route_for_each_name_until_the_log_is_past_it() -> None:
    def renamed(notes: Notes, *tables: str, position: int) -> list[tuple[str, str, bool]]:
        routes = routes_to(*tables)
        found = find_renamed(notes, survey(routes, {1: U}, {U: 101}), routes, position)
        return [(each.old[1], each.new[1], each.is_left) for each in found]

    notes = noted(routes_to("t"), {1: T})
    assert renamed(notes, "t", position=5) == [("t", "u", True)]
    assert renamed(notes, "u", position=5) == [("t", "u", False)]
    assert renamed(notes, "t", "u", position=5) == []
    both = routes_to("t", "u")
    later = note_tables(notes, survey(both, {1: U}, {U: 101}), both, position=5, only=lambda _oid: True)
    assert later.tables == {1: TableNote(name=U, member=101, former=(T,), seen=999)}
    assert former_names(later, {1: U}) == {T: U}
    assert renamed(later, "u", position=998) == [("t", "u", False)]
    assert renamed(later, "u", position=999) == []
    past = note_tables(
        later, survey(both, {1: U}, {U: 101}), routes_to("u"), position=1000, only=lambda _oid: True
    )
    assert past.tables == {1: TableNote(name=U, member=101)}


def test_tables_that_are_as_noted_are_unchanged() -> None:
    routes = routes_to("*")
    notes = noted(routes, {1: T, 2: U})
    now = survey(routes, {1: T, 2: ("public", "v")}, {T: 101, ("public", "v"): 102})
    assert unchanged_tables(notes, now.names, now.publication) == {1}
    assert unchanged_tables(notes, {1: T, 2: U}, survey(routes, {}, {T: 101, U: 103}).publication) == {1}


@pytest.mark.parametrize(("checked", "start"), [(0, 50), (40, 40), (60, 60), (101, 50)])
def test_a_gap_starts_at_the_last_check_and_not_at_the_checkpoint(checked: int, start: int) -> None:
    """Except if there is none, or if it is of another log: this log has not come to that LSN yet."""
    survey = Survey(end=100, names={}, selected=(), publication=None)
    assert gap_start(Notes(checked_lsn=checked), survey, 50) == start
