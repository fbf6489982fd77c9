"""Keeps the publication in sync with the tables that the routes select: at the start, and while the listener runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import structlog

from cdc_tasks.changes import EventType
from cdc_tasks.routing.router import Route
from listener.core.findings import Finding, raise_problems
from listener.core.source import GapError, SourceError
from listener.postgres.client.connection import Connection, fetch_value
from listener.postgres.client.errors import PermissionDeniedError
from listener.postgres.hints import ACCEPT_GAP, AFTER_GAP
from listener.postgres.log.position import format_lsn, parse_lsn
from listener.postgres.tables.catalogue import Table, TableName, read_names, read_tables
from listener.postgres.tables.checkpoint_notes import GapNote, Notes, TableNote
from listener.postgres.tables.current_tables import read_current_tables, routed
from listener.postgres.tables.publication import (
    Publication,
    add_tables,
    ensure_publication,
    gap_of_publication,
    plan_publication,
    read_publication,
    set_options,
)
from listener.postgres.tables.publication_membership import (
    add_to_publication,
    find_unwritten,
    replace_list,
    run_together,
)
from listener.postgres.tables.reconciliation import (
    Loss,
    Renamed,
    Survey,
    find_losses,
    find_renamed,
    note_tables,
    unchanged_tables,
)
from listener.postgres.tables.selection import covered_partitions, selected_tables
from listener.postgres.tables.table_findings import find_harm, for_wal2json

__all__ = [
    "SyncResult",
    "TableRenamedError",
    "TableSync",
    "describe_renamed",
    "gap_of_tables",
    "gap_start",
    "log_gap",
    "read_end",
]

log = structlog.get_logger()

_END: Final = """
SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END)::text
"""


class TableRenamedError(SourceError):
    """A selected table has a name without a route."""


_MOST_NAMED: Final = 50  # tables in one message
_BRING_UP_TO_DATE: Final = (
    "There is no checkpoint, so it is unknown whether the listener read the table before. If it did, update what "
    "depends on it by hand."
)


class Trouble(NamedTuple):
    """Why a table cannot be published, for the log."""

    event: str
    reason: str
    hint: str


class Repaired(NamedTuple):
    """The result of updating a publication."""

    losses: tuple[Loss, ...]
    proven: frozenset[int]  # the OIDs of tables whose changes are complete
    troubles: tuple[Trouble, ...]


class PreparedTables(NamedTuple):
    """The notes for a start, and the end of the log before the tables were checked."""

    notes: Notes
    checked_lsn: int
    gap_is_accepted: bool = False


class SyncResult(NamedTuple):
    """The result of a check of a running listener's tables."""

    notes: Notes
    troubles: tuple[Trouble, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether everything that the routes select is published."""
        return not self.troubles


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSync:
    """One listener's tables."""

    publication: str | None  # None: the plugin needs none
    routes: Sequence[Route]
    column_lists: bool = False

    def prepare(
        self,
        connection: Connection,
        notes: Notes,
        *,
        position: int = 0,
        accept_gap: bool = False,
        is_noted: bool = True,
    ) -> PreparedTables:
        """Adapt the publication to the routes, and return the notes.

        Call it before the slot is created, and not while another listener reads, which relies on the current
        publication. `position` is the LSN up to which the log was published; `is_noted` is False for `assumed` notes.
        Tables are published again before a gap is raised, so that the gap does not grow while it waits for a person.

        Raise SourceError with all problems of the tables, SourceLostError if a lock was not free soon, GapError if
        changes are missing, unless `accept_gap`. With assumed notes a gap is only logged.
        """
        findings, survey = self.survey(connection, notes)
        raise_problems(findings)
        losses, hints = self._restore(connection, notes, survey)
        renamed = tuple(find_renamed(notes, survey, self.routes, position))
        start, end = gap_start(notes, survey, position), read_end(connection)
        gap = gap_of_tables(losses, renamed, format_lsn(start), format_lsn(end), hints)
        if gap and not is_noted:
            for loss in losses:
                log_gap(_note_of(loss, start, end), hint=_BRING_UP_TO_DATE)
        elif gap and not accept_gap:
            raise gap  # nothing has been removed from the publication yet: the next start may need it
        if self.publication is not None:
            wanted, needed = self.wanted(connection, survey), self.needed(connection, survey)
            ensure_publication(connection, self.publication, wanted, needed=needed)
        after = self._survey_again(connection, survey)
        gap_is_accepted = accept_gap and bool(gap or notes.gaps)
        if accept_gap:
            notes = _accept(notes, gap, renamed, after.end)
        for each in notes.gaps:
            log_gap(each)
        noted = note_tables(notes, after, self.routes, position=position, only=lambda _oid: True)
        return PreparedTables(noted, survey.end, gap_is_accepted)

    def assumed(self, connection: Connection, confirmed: int) -> Notes:
        """Return the likely notes of a start without a first checkpoint.

        Everything it published is still in the publication, and nothing was acknowledged after `confirmed`.
        """
        found = self._read(connection)
        if found is None:
            return Notes()
        oids = {name: oid for oid, name in read_names(connection).items()}
        members = {name: member for name, member in found.members.items() if name in oids}
        return Notes(
            tables={oids[name]: TableNote(name=name, member=member) for name, member in members.items()},
            patterns=frozenset((route.schema, route.table) for route in self.routes),
            publication=found.oid,
            all_tables=found.all_tables,
            schemas=found.schemas,
            checked_lsn=confirmed,
        )

    def reconcile(self, connection: Connection, notes: Notes, *, since: int, position: int) -> SyncResult:
        """Publish new tables and those that were removed, while a listener reads; note what may be missing.

        At `since` all noted tables were published. Raise GapError if the publication is gone, TableRenamedError if a
        table was renamed and the plugin does not send which table a name stands for, SourceLostError.
        """
        survey = self._survey_changes(connection, notes)
        if self.publication is None:
            _refuse_renamed(notes, survey, self.routes, since)
            return SyncResult(
                note_tables(notes, survey, self.routes, position=position, only=lambda _oid: True)
            )
        if survey.publication is None:
            raise gap_of_publication(self.publication, format_lsn(since), format_lsn(survey.end))
        repaired = self._repair(connection, survey.publication, notes, survey)
        after = self._survey_again(connection, survey)
        lacking = self.lacking(connection, after)
        for loss in repaired.losses:
            end = None if loss.oid in lacking else format_lsn(after.end)
            gap = GapNote(table=loss.table, start=format_lsn(since), end=end, reason=loss.reason)
            notes = _with_gap(notes, gap)
        notes = _without_open_gaps(notes, after, lacking, repaired.proven)
        noted = note_tables(notes, after, self.routes, position=position, only=lambda oid: oid not in lacking)
        return SyncResult(noted, repaired.troubles)

    def survey(self, connection: Connection, notes: Notes) -> tuple[list[Finding], Survey]:
        """Return the findings about the routes' tables, and the current state of the server."""
        end = read_end(connection)
        seen = read_current_tables(connection, self.routes, notes)
        publication = self._read(connection)
        survey = Survey(
            end=end,
            names=seen.names,
            selected=seen.selected,
            covered=seen.covered,
            publication=publication,
        )
        findings = for_wal2json(seen.findings, seen.selected) if self.publication is None else seen.findings
        return findings, survey

    def _survey_changes(self, connection: Connection, notes: Notes) -> Survey:
        """Return a survey of the tables that differ from the notes; of all tables if the others matter, too."""
        end = read_end(connection)
        names, found = read_names(connection), self._read(connection)
        as_noted = unchanged_tables(notes, names, found)
        others = {oid: name for oid, name in names.items() if oid not in as_noted}
        tables = read_tables(connection, routed(self.routes, others))
        selected = selected_tables(self.routes, tables)
        events = frozenset[str]().union(*(each.events for each in selected))
        has_lists = found is not None and any(columns is not None for columns in found.tables.values())
        if self.column_lists or has_lists or not events <= notes.events:
            return self.survey(connection, notes)[1]
        return Survey(
            end=end,
            names=names,
            selected=selected,
            covered=covered_partitions(self.routes, tables),
            publication=found,
            unchanged=as_noted,
        )

    def wanted(self, connection: Connection, survey: Survey) -> Publication:
        """Return the wanted publication."""
        return _plan(connection, survey, column_lists=self.column_lists)

    def needed(self, connection: Connection, survey: Survey) -> Publication:
        """Return the minimum that the publication must have."""
        return _plan(connection, survey, column_lists=True)

    def lacking(self, connection: Connection, survey: Survey) -> frozenset[int]:
        """Return the OIDs of the tables that are not published, or not with all that the routes need."""
        needed, found = self.needed(connection, survey), survey.publication
        lacking = frozenset(needed.tables if found is None else found.lacks(needed))
        return frozenset(oid for oid, each in survey.by_oid.items() if each.table.name in lacking)

    def unproven(self, connection: Connection, notes: Notes, survey: Survey) -> tuple[Loss, ...]:
        """Return the tables whose changes may be missing. Changes nothing."""
        losses = tuple(find_losses(notes, survey, self.wanted(connection, survey)))
        proven = find_unwritten(connection, _provable(survey, losses))
        return tuple(loss for loss in losses if loss.oid not in proven)

    def _restore(
        self, connection: Connection, notes: Notes, survey: Survey
    ) -> tuple[tuple[Loss, ...], tuple[str, ...]]:
        """Publish tables again; return what may be missing, and the SQL for tables of other owners.

        Missing events are not published again until the gap is accepted: only they show the gap to the next start.
        """
        found = survey.publication
        if found is None:
            return (), ()
        wanted = self.wanted(connection, survey)
        losses = tuple(find_losses(notes, survey, wanted))
        provable = _provable(survey, losses)
        missing = [each for each in provable if not (each.name in found.tables or found.is_wide(each.name))]
        taken = add_to_publication(connection, found.name, wanted.tables, missing)
        if taken.busy:
            raise taken.busy[0]
        unwritten = find_unwritten(connection, [each for each in provable if each not in missing])
        hints = dict.fromkeys(error.hint or "" for error in taken.denied)
        return _unproven(losses, taken.proven | unwritten, taken.unlocked), tuple(hints)

    def _repair(self, connection: Connection, found: Publication, notes: Notes, survey: Survey) -> Repaired:
        """Publish what the routes need, unless it is harmful or the listener's role may not."""
        wanted = _with_events_of(notes, self.wanted(connection, survey), self.routes)
        losses = tuple(find_losses(notes, survey, wanted))
        lacking = frozenset(found.lacks(self.needed(connection, survey)))
        # New events are the only harm to tables that are already published.
        is_same = {event.value for event in wanted.events} <= notes.events
        harm = _find_harm(survey, wanted, lacking if is_same else None, connection.info.server_version)
        denied: list[PermissionDeniedError] = []
        with _collecting(denied):
            if not found.has_options_of(wanted) and harm.keys() <= lacking:
                run_together(connection, [set_options(found.name, wanted)])
        with _collecting(denied):
            if narrow := {table: wanted.tables[table] for table in lacking & found.tables.keys()}:
                replace_list(connection, found.name, narrow)
        missing = lacking - found.tables.keys() - harm.keys()
        tables = [each.table for each in survey.selected if each.table.name in missing]
        taken = add_to_publication(connection, found.name, wanted.tables, tables)
        with _collecting(denied):
            if partitions := missing & {each.name for each in survey.covered}:
                run_together(connection, [add_tables(found.name, dict.fromkeys(partitions))])
        published = [table for table in _provable(survey, losses) if table.name in found.tables]
        proven = taken.proven | find_unwritten(connection, published)
        troubles = [
            Trouble("tables_unseen", each.message, each.hint or "")
            for each in (*denied, *taken.denied, *taken.busy)
        ]
        troubles += [
            Trouble("tables_wrong", f"{each.what}: {each.found}", each.hint) for each in harm.values()
        ]
        return Repaired(_unproven(losses, proven, taken.unlocked), proven, tuple(troubles))

    def _survey_again(self, connection: Connection, survey: Survey) -> Survey:
        """Return the survey with the publication as it is now, and with the end of the log before that."""
        end = read_end(connection)
        return replace(survey, publication=self._read(connection), end=end)

    def _read(self, connection: Connection) -> Publication | None:
        return None if self.publication is None else read_publication(connection, self.publication)


def _plan(connection: Connection, survey: Survey, *, column_lists: bool) -> Publication:
    """Return what should be published, with the partitions: then a detached one continues without a gap."""
    plan = plan_publication(survey.selected, connection.info.server_version, column_lists=column_lists)
    return replace(plan, tables={**plan.tables, **{each.name: None for each in survey.covered}})


def read_end(connection: Connection) -> int:
    """Return the LSN at which the server's log ends."""
    return parse_lsn(fetch_value(connection, _END))


def gap_start(notes: Notes, survey: Survey, position: int) -> int:
    """Return the LSN from which changes of a table that differs from the notes may be missing.

    It is not `position`, up to which the log is published: the listener reads on until it checks the tables, and may be
    killed before.
    """
    return notes.checked_lsn if 0 < notes.checked_lsn <= survey.end else position


def gap_of_tables(
    losses: Collection[Loss],
    renamed: Collection[Renamed],
    start: str,
    end: str,
    more_hints: Collection[str] = (),
) -> GapError | None:
    """Return the gap of tables; None if nothing is missing."""
    messages, hints = [], list(more_hints)
    if losses:
        tables = [f"{each.table} ({each.reason})" for each in losses]
        more = f", and {len(tables) - _MOST_NAMED} more" if len(tables) > _MOST_NAMED else ""
        messages.append(
            f"Changes that were committed between {start} and {end} may be missing:"
            f" {', '.join(tables[:_MOST_NAMED])}{more}."
        )
    for each in renamed:
        text, hint = describe_renamed(each)
        messages.append(text)
        hints.append(hint)
    if not messages:
        return None
    code = "rows_missing" if losses else "table_renamed"
    return GapError(" ".join(messages), hint="\n".join([*hints, ACCEPT_GAP]), code=code)


def describe_renamed(renamed: Renamed) -> tuple[str, str]:
    """Return the message and the hint."""
    old, new = ".".join(renamed.old), ".".join(renamed.new)
    missing, when = (new, "since") if renamed.is_left else (old, "before")
    text = (
        f"{old} is called {new} now: what was committed {when} it was renamed comes as {missing},"
        " for which there is no route."
    )
    hint = (
        f"Register a route for each of {old} and {new}. Remove the one for {old} when the listener has read past the"
        " rename: once `python -m listener status` has shown lag_bytes 0."
    )
    return text, hint


def _note_of(loss: Loss, start: int, end: int) -> GapNote:
    return GapNote(table=loss.table, start=format_lsn(start), end=format_lsn(end), reason=loss.reason)


def log_gap(gap: GapNote, *, hint: str = ACCEPT_GAP) -> None:
    """Log a gap that is not accepted yet."""
    end = {"to": gap.end} if gap.end else {}
    log.error("gap", table=gap.table, **{"from": gap.start}, **end, reason=gap.reason, hint=hint)


def _with_gap(notes: Notes, gap: GapNote) -> Notes:
    with_gap = notes.with_gap(gap)
    if with_gap.gaps != notes.gaps:
        log_gap(gap)
    return with_gap


def _without_open_gaps(
    notes: Notes, survey: Survey, lacking: Collection[int], proven: Collection[int]
) -> Notes:
    """Return the notes with an end of each gap whose table is published now, and without gaps of unwritten tables."""
    names = {oid: ".".join(each.table.name) for oid, each in survey.by_oid.items()}
    still, void = {names[oid] for oid in lacking}, {names[oid] for oid in proven if oid in names}
    gaps = []
    for gap in notes.gaps:
        if gap.end is None and gap.table not in still:
            if gap.table in void:
                log.info("gap_over", table=gap.table, reason="nothing was written to the table")
                continue
            closed = replace(gap, end=format_lsn(survey.end))
            log_gap(closed)
            gaps.append(closed)
        else:
            gaps.append(gap)
    return replace(notes, gaps=tuple(gaps)) if gaps != list(notes.gaps) else notes


def _accept(notes: Notes, gap: GapError | None, renamed: Collection[Renamed], end: int) -> Notes:
    for message in [*([gap.message] if gap else []), *map(str, notes.gaps)]:
        log.error("gap_accepted", gap=message, hint=AFTER_GAP)
    tables = dict(notes.tables or {})
    for each in renamed:
        note = tables.pop(each.oid)
        if not each.is_left:
            former = (*note.former, each.old)
            tables[each.oid] = replace(note, name=each.new, former=former, seen=end, is_accepted=True)
    return replace(notes, gaps=(), tables=None if notes.tables is None else tables)


def _refuse_renamed(notes: Notes, survey: Survey, routes: Sequence[Route], since: int) -> None:
    """Raise TableRenamedError for a table whose changes come under a name that no route selects."""
    for each in find_renamed(notes, survey, routes, survey.end):
        text, hint = describe_renamed(each)
        raise TableRenamedError(
            f"{text} What was committed after {format_lsn(since)} may be missing.", hint=hint
        )


def _unproven(losses: Sequence[Loss], proven: Collection[int], unlocked: Collection[int]) -> tuple[Loss, ...]:
    """Return the remaining losses; `unlocked` are tables that were written to while they were added."""
    more = "; so may be the changes of transactions that were open at its end"
    return tuple(
        each._replace(reason=each.reason + more) if each.oid in unlocked else each
        for each in losses
        if each.oid not in proven
    )


def _provable(survey: Survey, losses: Sequence[Loss]) -> list[Table]:
    """Return the tables whose changes are complete if they were never written to."""
    return [survey.by_oid[loss.oid].table for loss in losses if loss.oid and loss.is_provable]


def _with_events_of(notes: Notes, wanted: Publication, routes: Sequence[Route]) -> Publication:
    """Return `wanted` with the events noted as published: tables that match the notes need them."""
    routed_events = frozenset[EventType]().union(*(route.events for route in routes))
    noted = frozenset(event for event in routed_events if event.value in notes.events)
    return replace(wanted, events=wanted.events | noted)


def _find_harm(
    survey: Survey, wanted: Publication, tables: Collection[TableName] | None, version: int
) -> dict[TableName, Finding]:
    """Return a finding for each of the tables (None: of all) whose UPDATE and DELETE would fail once published."""
    return {
        each.table.name: finding
        for each in survey.selected
        if tables is None or each.table.name in tables
        for finding in find_harm(each, wanted.events, version)
    }


@contextmanager
def _collecting(denied: list[PermissionDeniedError]) -> Iterator[None]:
    try:
        yield
    except PermissionDeniedError as error:
        denied.append(error)
