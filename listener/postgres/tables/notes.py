"""What a listener on PostgreSQL keeps with its checkpoint: the tables that it watched, gaps nobody has accepted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import structlog

from listener.postgres.tables.catalogue import TableName

__all__ = ["GapNote", "Notes", "TableNote", "format_notes", "parse_notes"]

log = structlog.get_logger()

_VERSION: Final = 1
_MOST_GAPS: Final = 100  # beyond that a table's gaps are put together: nobody reads so many
_OURS: Final = frozenset(
    {"version", "publication", "events", "all_tables", "schemas", "patterns", "tables", "looked", "gaps"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableNote:
    """A table that was watched."""

    name: TableName
    member: (
        int | None
    )  # pg_publication_rel.oid; None: published with all tables, with its schema, or not needed
    former: tuple[TableName, ...] = ()  # names that it had before
    seen: int = (
        0  # the end of the log when it was first seen under `name`; older rows come under a former name
    )
    is_accepted: bool = False  # a person gave up what comes under the former names


@dataclass(frozen=True, slots=True, kw_only=True)
class GapNote:
    """Changes of a table that are missing, and that nobody has accepted yet."""

    table: str
    start: str  # what was committed after this position of the log …
    end: str | None  # … and before this one; None: it is not published yet
    reason: str

    def __str__(self) -> str:
        end = "now, and goes on" if self.end is None else self.end
        return f"changes of {self.table} from {self.start} to {end} are missing: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """All that is kept with the checkpoint. Fields that this version does not know stay as they are."""

    tables: Mapping[int, TableNote] | None = None  # by pg_class.oid; None: nothing was noted
    patterns: frozenset[TableName] = frozenset()  # the routes' schemas and tables
    publication: int | None = None  # pg_publication.oid
    events: frozenset[str] = frozenset()
    all_tables: bool = False
    schemas: frozenset[str] = frozenset()  # those of which all tables are published
    checked_lsn: int = 0  # where the log was when all was seen to be as it is noted; 0: not known
    gaps: tuple[GapNote, ...] = ()
    others: Mapping[str, Any] = field(default_factory=dict)

    def with_gap(self, gap: GapNote) -> Notes:
        """Return the notes with one more gap; one of the same table that is still open becomes this one."""
        is_full = len(self.gaps) >= _MOST_GAPS
        for place, known in enumerate(self.gaps):
            if known.table == gap.table and (known.end is None or is_full):
                grown = replace(gap, start=known.start)
                return replace(self, gaps=(*self.gaps[:place], grown, *self.gaps[place + 1 :]))
        return replace(self, gaps=(*self.gaps, gap))

    def with_former_name(self, oid: int, name: TableName, *, seen: int) -> Notes:
        """Return the notes with one more name under which a table's changes may come."""
        tables = dict(self.tables or {})
        note = tables[oid]
        former = tuple(dict.fromkeys((*note.former, name)))
        tables[oid] = replace(note, former=former, seen=max(note.seen, seen), is_accepted=False)
        return replace(self, tables=tables)


def parse_notes(text: str | None) -> Notes:
    """Read what `format_notes` wrote; notes that cannot be read are as good as none, and the log says so."""
    if not text:
        return Notes()
    try:
        found = json.loads(text)
        return Notes(
            tables=None if found.get("tables") is None else dict(map(_parse_table, found["tables"])),
            patterns=frozenset((schema, table) for schema, table in found.get("patterns", ())),
            publication=found.get("publication"),
            events=frozenset(found.get("events", ())),
            all_tables=bool(found.get("all_tables")),
            schemas=frozenset(found.get("schemas", ())),
            checked_lsn=int(found.get("looked", 0)),
            gaps=tuple(GapNote(**each) for each in found.get("gaps", ())),
            others={name: value for name, value in found.items() if name not in _OURS},
        )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        log.warning("notes_unreadable", reason=str(error))
        return Notes()


def format_notes(notes: Notes) -> str:
    """Return the notes as text; equal notes have the same."""
    tables = None if notes.tables is None else [_format_table(*each) for each in sorted(notes.tables.items())]
    return json.dumps(
        {
            **notes.others,
            "version": _VERSION,
            "publication": notes.publication,
            "events": sorted(notes.events),
            "all_tables": notes.all_tables,
            "schemas": sorted(notes.schemas),
            "patterns": sorted(notes.patterns),
            "tables": tables,
            "looked": notes.checked_lsn,
            "gaps": [
                {"table": gap.table, "start": gap.start, "end": gap.end, "reason": gap.reason}
                for gap in notes.gaps
            ],
        },
        separators=(",", ":"),
    )


def _parse_table(fields: list[Any]) -> tuple[int, TableNote]:
    oid, schema, name, member, *more = fields
    seen, is_accepted, former = more or (0, False, ())
    names = tuple((old_schema, old_name) for old_schema, old_name in former)
    note = TableNote(
        name=(schema, name), member=member, former=names, seen=seen, is_accepted=bool(is_accepted)
    )
    return oid, note


def _format_table(oid: int, note: TableNote) -> list[Any]:
    """Return a list: there may be thousands."""
    short: list[Any] = [oid, *note.name, note.member]
    return [*short, note.seen, note.is_accepted, note.former] if note.former else short
