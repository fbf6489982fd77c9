"""What only pgoutput has."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from struct import pack
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from listener.core.source import SourceError
from listener.postgres.codec.builtin_types import BUILTIN, ValueType
from listener.postgres.codec.pgoutput import PgOutputDecoder
from listener.postgres.codec.tuple_data import UNCHANGED, split_tuple, split_tuples
from tests.support.postgres.captures import captures

if TYPE_CHECKING:
    from listener.postgres.codec.change import WALChange
    from listener.postgres.codec.tuple_data import Row


# Long and short, and lengths whose bytes look like the head of a text: 0x74 is "t".
_text = st.one_of(
    st.binary(max_size=8).map(lambda text: text.replace(b"\0", b"t")),
    st.sampled_from([0, 1, 0x73, 0x74, 0x75, 255, 256, 0x174, 0x7400, 0x7474, 0x740000]).map(
        lambda size: b"t" * size
    ),
)
_values = st.lists(st.one_of(_text, st.none(), st.just(UNCHANGED)), max_size=8)


def _tuple_data(values: Row) -> bytes:
    """Return it as the server sends it."""
    data = pack(">H", len(values))
    for value in values:
        if isinstance(value, bytes):
            data += b"t" + pack(">I", len(value)) + value
        else:
            data += b"n" if value is None else b"u"
    return data


@settings(deadline=None)  # a busy machine is not a slow decoder
@given(_values)
def test_a_tuple_is_split_into_text_null_and_not_sent(values: Row) -> None:
    assert split_tuple(b"t" + _tuple_data(values), 1) == values


@settings(deadline=None)
@given(_values, _values)
def test_two_tuples_of_as_many_columns_are_split(old: Row, new: Row) -> None:
    count = min(len(old), len(new))
    old, new = old[:count], new[:count]
    data = b"t" + _tuple_data(old) + b"N" + _tuple_data(new)
    assert split_tuples(data, 1) == (old, new)


def test_a_message_of_an_unknown_kind_stops_the_listener() -> None:
    decoder = PgOutputDecoder(BUILTIN.__getitem__, source="c0ffee")
    with pytest.raises(SourceError, match="cannot be decoded"):
        decoder.decode(b"?what is this", [])


def test_the_end_of_an_aborted_transaction_of_which_nothing_was_sent_is_passed_over() -> None:
    decoder = PgOutputDecoder(BUILTIN.__getitem__, source="c0ffee")
    changes: list[WALChange] = []
    assert decoder.decode(b"A" + bytes.fromhex("0006e35c0006e35c"), changes) is None
    assert changes == []


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


def test_types_are_resolved_once_a_relation_message_and_not_for_rows() -> None:
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
    lsn = change.commit.commit_lsn
    microseconds = (change.committed_at - datetime(2000, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert change.position == f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}:1"
    assert change.id == f"c0ffee-{lsn:X}-{microseconds:X}-1"
