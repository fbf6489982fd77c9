"""What a listener on PostgreSQL stores with its checkpoint: its tables, and the gaps not accepted yet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any, Final

import structlog

from listener.postgres.tables.catalogue import TableName

__all__ = ["GapNote", "Notes", "NotesWriter", "TableNote", "format_notes", "parse_notes"]

log = structlog.get_logger()

_VERSION: Final = 1
_MOST_GAPS: Final = 100  # above this, the gaps of a table are merged, to stay readable
_DECODER: Final = "decoder"  # the field for the decoder's notes

# How often the notes are written for a new `checked_lsn` alone. Notes of thousands of tables are long.
_CHECKED_EVERY: Final = 2.0  # seconds, at least …
_CHECKED_RATE: Final = 50_000  # … and bytes a second, at most
_OURS: Final = frozenset(
    {"version", "publication", "events", "all_tables", "schemas", "patterns", "tables", "looked", "gaps"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableNote:
    """A selected table."""

    name: TableName
    # pg_publication_rel.oid. None: it is published with all tables, or with its schema, or needs no publication.
    member: int | None
    former: tuple[TableName, ...] = ()  # its previous names
    # The end of the log when it was first seen under `name`: older rows come under a former name.
    seen: int = 0
    is_accepted: bool = False  # a person accepted the loss of changes under the former names


@dataclass(frozen=True, slots=True, kw_only=True)
class GapNote:
    """Missing changes of a table, not accepted yet."""

    table: str
    start: str  # everything committed after this LSN …
    end: str | None  # … and before this one; None: the table is still not published
    reason: str

    def __str__(self) -> str:
        end = "now, and goes on" if self.end is None else self.end
        return f"changes of {self.table} from {self.start} to {end} are missing: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """Everything stored with the checkpoint. Fields unknown to this version are kept."""

    tables: Mapping[int, TableNote] | None = None  # by pg_class.oid; None: there are no notes
    patterns: frozenset[TableName] = frozenset()  # the routes' schemas and tables
    publication: int | None = None  # pg_publication.oid
    events: frozenset[str] = frozenset()
    all_tables: bool = False
    schemas: frozenset[str] = frozenset()  # schemas with all tables published
    checked_lsn: int = 0  # the end of the log when the tables last matched the notes; 0: unknown
    gaps: tuple[GapNote, ...] = ()
    others: Mapping[str, Any] = field(default_factory=dict)

    @property
    def decoder(self) -> str | None:
        """The decoder's notes."""
        return self.others.get(_DECODER)

    def with_gap(self, gap: GapNote) -> Notes:
        """Return the notes with one more gap, which extends an open gap of the same table."""
        is_full = len(self.gaps) >= _MOST_GAPS
        for place, known in enumerate(self.gaps):
            if known.table == gap.table and (known.end is None or is_full):
                grown = replace(gap, start=known.start)
                return replace(self, gaps=(*self.gaps[:place], grown, *self.gaps[place + 1 :]))
        return replace(self, gaps=(*self.gaps, gap))

    def with_former_name(self, oid: int, name: TableName, *, seen: int) -> Notes:
        """Return the notes with an additional name under which a table's changes may come."""
        tables = dict(self.tables or {})
        note = tables[oid]
        former = tuple(dict.fromkeys((*note.former, name)))
        tables[oid] = replace(note, former=former, seen=max(note.seen, seen), is_accepted=False)
        return replace(self, tables=tables)


class NotesWriter:
    """Returns the notes for a batch when they differ from those that the broker has."""

    def __init__(self) -> None:
        self._saved: str | None = None  # what the broker has, or will have with the current batch
        self._compared: Notes | None = None  # source of `_saved`
        self._decoder: str | None = None
        self._checked_lsn = 0  # the one in `_saved`
        self._next_check_at = 0.0  # before this time a new `checked_lsn` alone is not written

    def restart(self, saved: str | None) -> Notes:
        """Start with the notes that the broker has, and return them."""
        notes = parse_notes(saved)
        self._saved, self._compared, self._decoder = saved, None, notes.decoder
        return notes

    @property
    def decoder(self) -> str | None:
        """The decoder's notes."""
        return self._decoder

    def changed(
        self, notes: Notes, *, checked_lsn: int, decoder: str | None, is_last: bool = False
    ) -> str | None:
        """Return the notes as text; None if the broker has them.

        `checked_lsn` replaces that of the notes. A new one alone is written from time to time, and with `is_last`.
        `decoder` are the decoder's notes; None: they are as before.
        """
        is_due = checked_lsn != self._checked_lsn and (is_last or monotonic() >= self._next_check_at)
        if notes is self._compared and decoder is None and not is_due:
            return None
        self._compared, self._decoder = notes, decoder or self._decoder
        if self._decoder is not None:
            notes = replace(notes, others={**notes.others, _DECODER: self._decoder})
        former, self._saved = self._saved, format_notes(replace(notes, checked_lsn=checked_lsn))
        self._checked_lsn = checked_lsn
        self._next_check_at = monotonic() + max(_CHECKED_EVERY, len(self._saved) / _CHECKED_RATE)
        return None if former == self._saved else self._saved


def parse_notes(text: str | None) -> Notes:
    """Parse the output of `format_notes`. Unreadable notes count as none, with a log line."""
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
    """Return the notes as text; equal notes have the same text."""
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
    """Return a compact list: there may be thousands of tables."""
    short: list[Any] = [oid, *note.name, note.member]
    return [*short, note.seen, note.is_accepted, note.former] if note.former else short
