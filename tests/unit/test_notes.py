"""What is kept with the checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace

from structlog.testing import capture_logs

from listener.postgres.tables.checkpoint_notes import GapNote, Notes, TableNote, format_notes, parse_notes

NOTES = Notes(
    tables={
        7: TableNote(name=("public", "t"), member=9),
        8: TableNote(name=("s", "v"), member=None, former=(("s", "u"),), seen=5, is_accepted=True),
    },
    patterns=frozenset({("public", "*"), ("s", "v")}),
    publication=3,
    events=frozenset({"insert"}),
    schemas=frozenset({"s"}),
    checked_lsn=6,
    gaps=(GapNote(table="public.t", start="0/1", end=None, reason="why"),),
)


def test_notes_are_read_as_they_were_written() -> None:
    assert parse_notes(format_notes(NOTES)) == NOTES
    assert format_notes(parse_notes(format_notes(NOTES))) == format_notes(NOTES)


def test_fields_of_a_newer_version_stay() -> None:
    text = json.dumps({**json.loads(format_notes(NOTES)), "later": {"a": 1}})
    assert json.loads(format_notes(parse_notes(text)))["later"] == {"a": 1}


def test_nothing_noted_is_not_the_same_as_no_tables() -> None:
    assert parse_notes(None).tables is None
    assert parse_notes(format_notes(Notes(tables={}))).tables == {}


def test_notes_that_cannot_be_read_are_logged() -> None:
    for text in ("no json", "[]", '{"tables":[[1]]}', '{"gaps":[{"table":"t"}]}'):
        with capture_logs() as logs:
            assert parse_notes(text) == Notes()
        assert [each["event"] for each in logs] == ["notes_unreadable"]


def test_an_open_gap_grows_and_a_closed_one_stays() -> None:
    closed = GapNote(table="public.t", start="0/8", end="0/9", reason="why")
    (grown,) = NOTES.with_gap(closed).gaps
    assert (grown.start, grown.end) == ("0/1", "0/9")
    again = replace(NOTES, gaps=(grown,)).with_gap(closed)
    assert again.gaps == (grown, closed)


def test_the_number_of_gaps_is_limited() -> None:
    notes = Notes()
    for number in range(500):
        notes = notes.with_gap(GapNote(table="t", start=str(number), end=str(number + 1), reason="why"))
    assert len(notes.gaps) == 100
    assert (notes.gaps[0].start, notes.gaps[0].end) == ("0", "500")
