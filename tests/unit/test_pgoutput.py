"""What only pgoutput has."""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING

import pytest

from listener.monitor import SourceError
from listener.postgres.builtin_types import BUILTIN, ValueType
from listener.postgres.pgoutput import PgOutputDecoder
from listener.postgres.table import UNCHANGED, split_tuple
from tests.captures import captures

if TYPE_CHECKING:
    from listener.postgres.change import WALChange


def test_a_tuple_is_cut_into_text_null_and_not_sent() -> None:
    data = pack(">H", 4) + b"t" + pack(">I", 2) + b"ab" + b"n" + b"u" + b"t" + pack(">I", 0)
    assert split_tuple(b"?" + data, 1) == ([b"ab", None, UNCHANGED, b""], 1 + len(data))


def test_a_message_of_an_unknown_kind_stops_the_listener() -> None:
    decoder = PgOutputDecoder(BUILTIN.__getitem__, source="c0ffee")
    with pytest.raises(SourceError, match="cannot be decoded"):
        decoder.decode(b"?what is this", [])


def test_texts_of_another_encoding_are_read_in_it() -> None:
    (capture, *_) = captures("rows")
    decoder = PgOutputDecoder(BUILTIN.__getitem__, source="c0ffee", codec="cp1252")
    changes: list[WALChange] = []
    for payload in capture.payloads():
        decoder.decode(
            payload.replace(b"first", b"f\xfcr \x81").replace(b"tickets", b"gr\xf6\xdfen"), changes
        )
    assert changes[0].table == "größen"
    assert changes[0].after == {"id": 1, "title": r"für \x81", "done": False}


def test_types_are_asked_for_once_a_relation_message_and_not_for_rows() -> None:
    asked: list[int] = []

    def resolve(oid: int) -> ValueType:
        asked.append(oid)
        return BUILTIN[oid]

    (capture, *_) = captures("rows")
    decoder = PgOutputDecoder(resolve, source="c0ffee")
    changes: list[WALChange] = []
    for payload in capture.payloads():
        decoder.decode(payload, changes)
    assert changes[0].row == {"id": 1, "title": "first", "done": False}
    assert asked == [23, 25, 16]


def test_positions_and_ids_come_from_the_commit_and_not_from_the_clock() -> None:
    (capture, *_) = captures("rows")
    change = capture.changes()[1]
    lsn = change.transaction.commit_lsn
    assert change.position == f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}:1"
    assert change.id == f"c0ffee-{lsn:X}-1"
