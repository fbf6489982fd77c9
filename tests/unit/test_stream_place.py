"""How far the binlog's stream is, by the events that have come."""

from __future__ import annotations

from listener.mysql.log.position import BinlogPosition
from listener.mysql.stream import StreamPlace

_ROTATE, _FORMAT, _XID, _HEARTBEAT = 4, 15, 16, 27
_GIGABYTE = 1 << 30


def _event(kind: int, end: int, body: bytes = b"", *, flags: int = 0) -> bytes:
    head = bytes(4) + bytes((kind,)) + bytes(8) + (end % (1 << 32)).to_bytes(4, "little")
    return head + flags.to_bytes(2, "little") + body + bytes(4)


def _rotate(offset: int) -> bytes:
    return _event(_ROTATE, 0, offset.to_bytes(8, "little") + b"binlog.000007", flags=0x20)


def _at(place: StreamPlace) -> tuple[str, int]:
    assert place.position is not None
    return place.position.file, place.position.offset


def test_a_server_that_begins_with_the_start_of_the_file_is_not_ahead_of_where_reading_began() -> None:
    place = StreamPlace(BinlogPosition(file="binlog.000007", offset=5000))
    for event in (_rotate(4), _event(_FORMAT, 126), _event(_XID, 4000)):
        place.passed(event, "binlog.000007")
        assert _at(place) == ("binlog.000007", 5000)
    place.passed(_event(_HEARTBEAT, 5100), "binlog.000007")
    assert _at(place) == ("binlog.000007", 5100)


def test_a_file_of_more_than_four_gigabytes_goes_on_ascending() -> None:
    place = StreamPlace(None)
    assert place.position is None
    place.passed(_rotate(4), "binlog.000007")
    for gigabytes in range(1, 12):
        place.passed(_event(_XID, gigabytes * _GIGABYTE + 7), "binlog.000007")
        assert _at(place) == ("binlog.000007", gigabytes * _GIGABYTE + 7)
    place.passed(_rotate(4), "binlog.000008")
    assert _at(place) == ("binlog.000008", 4)


def test_an_event_that_is_not_in_the_file_says_nothing() -> None:
    place = StreamPlace(None)
    place.passed(_rotate(900), "binlog.000007")
    place.passed(_event(_FORMAT, 0), "binlog.000007")
    place.passed(_event(163, 300, flags=0x20), "binlog.000007")
    assert _at(place) == ("binlog.000007", 900)
