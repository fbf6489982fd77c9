"""Events that a decoder must not pass over in silence."""

from __future__ import annotations

import struct

import pytest

from listener.core.source import GapError, SourceError
from listener.mysql.codec.decoder import Decoder
from listener.mysql.log.position import BinlogPosition

_START = BinlogPosition(file="binlog.000001", offset=4, server="1")
_LATER = BinlogPosition(file="binlog.000001", offset=10_000, server="1")


def _event(kind: int, body: bytes = b"", *, flags: int = 0) -> bytes:
    return struct.pack("<IBIIIH", 0, kind, 1, 23 + len(body), 300, flags) + body + b"\0\0\0\0"


def _decoder(accepts_gap_until: BinlogPosition | None = None) -> Decoder:
    return Decoder(mariadb=False, describe=lambda _: None, after=_START, accepts_gap_until=accepts_gap_until)


@pytest.mark.parametrize("kind", [1, 6, 12, 20, 22, 43, 99, 172, 255])
def test_an_event_of_an_unknown_kind_stops_the_stream(kind: int) -> None:
    with pytest.raises(SourceError, match=f"unknown kind: {kind}") as caught:
        _decoder().decode(_event(kind), [])
    assert "--accept-gap" in (caught.value.hint or "")


def test_an_event_that_the_server_marks_as_ignorable_is_ignored() -> None:
    _decoder().decode(_event(99, flags=0x80), [])


def test_an_incident_is_a_gap() -> None:
    with pytest.raises(GapError, match="incident"):
        _decoder().decode(_event(26), [])


def test_an_accepted_gap_ends_where_the_log_ended_when_it_was_accepted() -> None:
    _decoder(_LATER).decode(_event(99), [])
    with pytest.raises(SourceError):
        _decoder(_START).decode(_event(99), [])


def test_rows_without_a_description_stop_the_stream() -> None:
    body = b"\x07\0\0\0\0\0\1\0\2\0\1\xff\0\1\0\0\0"
    with pytest.raises(SourceError, match="did not describe"):
        _decoder().decode(_event(30, body), [])


def test_what_cannot_be_decoded_is_said_once_with_its_place() -> None:
    with pytest.raises(SourceError) as caught:
        _decoder().decode(_event(40, b"\x02\x01\x07\0"), [])
    assert caught.value.message.count("The log has at binlog.000001:") == 1
