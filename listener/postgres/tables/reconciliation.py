"""Compares the noted tables with the current ones: pure, no I/O.

Two kinds of tables may have rows that the listener missed: a noted table that is no longer published, and a new table
that an old route selects. Those are gaps. A table that only a new route selects is not: its rows are wanted from now
on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import NamedTuple

from cdc_tasks.routing.router import Route
from listener.postgres.tables.catalogue import Table, TableName
from listener.postgres.tables.checkpoint_notes import Notes, TableNote
from listener.postgres.tables.publication import Publication
from listener.postgres.tables.selection import SelectedTable, is_glob

__all__ = [
    "ALL_TABLES",
    "Loss",
    "Renamed",
    "Survey",
    "find_losses",
    "find_renamed",
    "former_names",
    "is_named",
    "note_tables",
    "unchanged_tables",
]

ALL_TABLES = "all tables"


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The server's tables at one moment."""

    end: int  # the end of the log then, or a little before
    names: Mapping[int, TableName]  # of all tables, views and the like
    selected: Sequence[SelectedTable]
    publication: Publication | None  # None: it does not exist, or the plugin needs none
    covered: Sequence[Table] = ()  # partitions whose changes come under the root's name; they may be detached
    unchanged: frozenset[int] = (
        frozenset()
    )  # selected tables that match the notes: `selected` leaves them out

    @cached_property
    def by_oid(self) -> Mapping[int, SelectedTable]:
        return {each.table.oid: each for each in self.selected}

    @cached_property
    def covered_oids(self) -> frozenset[int]:
        return frozenset(table.oid for table in self.covered)

    @cached_property
    def taken(self) -> frozenset[TableName]:
        """The names in use now."""
        return frozenset(self.names.values())


class Loss(NamedTuple):
    """A table whose changes may be missing."""

    oid: int | None  # None: all tables
    table: str
    reason: str
    is_provable: bool  # nothing is missing if the table was never written to


class Renamed(NamedTuple):
    """A table whose changes come under two names, only one of which the routes select."""

    oid: int
    old: TableName
    new: TableName
    is_left: bool  # the routes select the old name only


def find_losses(notes: Notes, survey: Survey, wanted: Publication) -> Iterator[Loss]:
    """Yield the tables that should have been published all the time, but were not."""
    found = survey.publication
    if notes.tables is None or notes.publication is None or found is None:
        return
    if notes.publication != found.oid:
        yield Loss(None, ALL_TABLES, "the publication was dropped and recreated", is_provable=False)
        return
    if reason := _lost_everywhere(notes, found, wanted):
        yield Loss(None, ALL_TABLES, reason, is_provable=False)
    for oid, each in survey.by_oid.items():
        note, name = notes.tables.get(oid), each.table.name
        reason = _loss_of_new(notes, found, name) if note is None else _loss_of_noted(note, found, name)
        if reason:
            is_provable = note is None or name not in found.tables
            yield Loss(oid, ".".join(name), reason, is_provable)


def _lost_everywhere(notes: Notes, found: Publication, wanted: Publication) -> str | None:
    """Return why changes of all tables may be missing: something was published before and is not now."""
    missing = {event.value for event in wanted.events - found.events} & notes.events
    if missing:
        return f"the publication no longer sent {', '.join(sorted(event.upper() for event in missing))}"
    if wanted.via_root and not found.via_root:
        return "the publication no longer had publish_via_partition_root: rows came under their partitions' names"
    return None


def _loss_of_noted(note: TableNote, found: Publication, name: TableName) -> str | None:
    if found.is_wide(name):
        return None
    if name not in found.tables:
        return "the table was taken out of the publication"
    if note.member != found.members.get(name):
        return "the table was out of the publication for a while"
    return "the publication left out rows of the table" if name in found.filtered else None


def _loss_of_new(notes: Notes, found: Publication, name: TableName) -> str | None:
    """Return why a table that was not noted should have been published; None if its route is new."""
    if not any(
        fnmatchcase(name[0], schema) and fnmatchcase(name[1], table) for schema, table in notes.patterns
    ):
        return None
    if found.is_wide(name) and (notes.all_tables or name[0] in notes.schemas):
        return None
    if any(note.name == name for note in (notes.tables or {}).values()):
        return "another table has this name now, and was not published from its first row on"
    return "the table is new, and was not published from its first row on"


def unchanged_tables(
    notes: Notes, names: Mapping[int, TableName], found: Publication | None
) -> frozenset[int]:
    """Return the OIDs of the tables that have the noted name and are published as noted."""
    return frozenset(
        oid
        for oid, note in (notes.tables or {}).items()
        if names.get(oid) == note.name
        and (found is None or note.member == found.members.get(note.name))
        and (found is None or note.member is not None or found.is_wide(note.name))
    )


def find_renamed(notes: Notes, survey: Survey, routes: Sequence[Route], position: int) -> Iterator[Renamed]:
    """Yield the tables that come under two names, one of which the routes select.

    `position` is the LSN up to which the log is published: later changes still have the names of their time.
    """
    for oid, note in (notes.tables or {}).items():
        new = survey.names.get(oid)
        if new is None:
            continue  # it was dropped: earlier changes come under its name
        old_names = [note.name] if new != note.name else []
        if position < note.seen and not note.is_accepted:
            old_names += [name for name in note.former if name != new]
        is_known = _is_routed(routes, new)
        for old in old_names:
            if is_known and not _is_routed(routes, old):
                yield Renamed(oid, old, new, is_left=False)
            elif not is_known and is_named(routes, old) and old not in survey.taken:
                yield Renamed(oid, old, new, is_left=True)


def note_tables(
    notes: Notes, survey: Survey, routes: Sequence[Route], *, position: int, only: Callable[[int], bool]
) -> Notes:
    """Return the new notes; `only` returns whether to note the state of the table with an OID."""
    found = survey.publication
    tables = {oid: note for oid, note in (notes.tables or {}).items() if _is_kept(oid, note, survey, routes)}
    for oid, each in survey.by_oid.items():
        if only(oid):
            name = each.table.name
            note = TableNote(name=name, member=found.members.get(name) if found else None)
            # If the log is published up to there, the rename is past: an idle log's position is one before its end.
            tables[oid] = _with_former(note, tables.get(oid), survey.end - 1, routes, position)
    for table in survey.covered:
        if found is not None and (table.name in found.members or found.is_wide(table.name)):
            tables[table.oid] = TableNote(name=table.name, member=found.members.get(table.name))
    return replace(
        notes,
        tables=tables,
        patterns=frozenset((route.schema, route.table) for route in routes),
        publication=found.oid if found else None,
        events=frozenset(event.value for event in found.events) if found else frozenset(),
        all_tables=found.all_tables if found else False,
        schemas=found.schemas if found else frozenset(),
    )


def _is_kept(oid: int, note: TableNote, survey: Survey, routes: Sequence[Route]) -> bool:
    """Return whether the note still matters for changes to come."""
    if oid in survey.unchanged or oid in survey.by_oid or oid in survey.covered_oids:
        return True
    if oid not in survey.names:
        return any(is_named(routes, each) for each in (note.name, *note.former))
    # A renamed table without a route for its new name: the next start has to report it.
    return is_named(routes, note.name) and note.name not in survey.taken


def _with_former(
    note: TableNote, old: TableNote | None, end: int, routes: Sequence[Route], position: int
) -> TableNote:
    """Return the note with the table's former names, including the last one if the table was renamed."""
    if old is None:
        return note
    if old.name == note.name:
        former, seen, is_accepted = old.former, old.seen, old.is_accepted
    else:
        former, seen, is_accepted = (*old.former, old.name), end, False
    kept = tuple(
        each
        for each in dict.fromkeys(former)
        if each != note.name and (position < seen or is_named(routes, each))
    )
    return replace(note, former=kept, seen=seen, is_accepted=is_accepted) if kept else note


def is_named(routes: Sequence[Route], name: TableName) -> bool:
    """Return whether a route has exactly the table's name, not a glob."""
    return any(not is_glob(route) and (route.schema, route.table) == name for route in routes)


def _is_routed(routes: Sequence[Route], name: TableName) -> bool:
    return any(route.matches(*name) for route in routes)


def former_names(notes: Notes, names: Mapping[int, TableName]) -> Mapping[TableName, TableName | None]:
    """Return the former names of the noted tables, each with the table's name now; None if it no longer exists."""
    return {
        old: names.get(oid)
        for oid, note in (notes.tables or {}).items()
        for old in (*note.former, note.name)
        if old != names.get(oid)
    }
