"""Events that are not what a server logs: decoding ends, soon, with changes or with the error that the loop knows."""

from __future__ import annotations

import random
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from cdc_tasks.errors import CDCError
from listener.core.source import GapError, SourceError
from listener.mysql.codec.json_binary import document, patch
from listener.mysql.codec.values import UNREADABLE
from tests.support.mysql.captures import binlog_captures, read_all

if TYPE_CHECKING:
    from tests.support.mysql.captures import BinlogCapture

_ALL = binlog_captures()
_ROUNDS = 100  # of each capture
_MOST_MEMORY = 40_000_000  # bytes; a capture has less than a hundredth of it
_EXTREMES = (
    b"\0",
    b"\1",
    b"\x7f",
    b"\x80",
    b"\xfb",
    b"\xfc",
    b"\xfd",
    b"\xfe",
    b"\xff",
    b"\xff" * 4,
    b"\0" * 4,
)
_HEADER, _CHECKSUM = 19, 4


def _mutate(events: list[bytes], rng: random.Random) -> list[bytes]:
    """Return the events with one or a few of them changed, left out, repeated or put elsewhere."""
    events = list(events)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        place = rng.randrange(len(events))
        match rng.randrange(8):
            case 0:
                events.insert(rng.randrange(len(events)), events.pop(place))
            case 1:
                events.insert(place, events[place])
            case 2 if len(events) > 1:
                del events[place]
            case _:
                events[place] = _damage(events[place], rng)
    return events


def _damage(event: bytes, rng: random.Random) -> bytes:
    at = (
        rng.randrange(4, len(event))
        if rng.random() < 0.1
        else rng.randrange(min(_HEADER, len(event) - 1), len(event))
    )
    match rng.randrange(5):
        case 0:
            return event[:at] + bytes((rng.randrange(256),)) + event[at + 1 :]
        case 1:
            extreme = rng.choice(_EXTREMES)
            return event[:at] + extreme + event[at + len(extreme) :]
        case 2:
            return event[:at] + event[at + rng.randrange(1, 9) :]
        case 3:
            return event[:at] + rng.randbytes(rng.randrange(1, 9)) + event[at:]
        case _:
            return event[:at] + event[-_CHECKSUM:]


def _decode(capture: BinlogCapture, events: list[bytes], *, to_the_end: bool) -> None:
    decoder = capture.decoder()
    try:
        changes = read_all(decoder, events, to_the_end=to_the_end)
        assert len(changes) <= sum(map(len, events)) * 10
        for change in changes:
            change.to_json()
            change.changed("a")
    except (SourceError, GapError):
        pass
    finally:
        decoder.close()


@pytest.mark.parametrize("capture", _ALL, ids=lambda each: f"{each.scenario}-{each}")
def test_damaged_events_are_read_or_refused_and_cost_no_more_than_their_size(capture: BinlogCapture) -> None:
    rng = random.Random(f"{capture.scenario} {capture}")
    events = capture.raw()
    tracemalloc.start()
    try:
        for round_ in range(_ROUNDS):
            damaged = _mutate(events, rng)
            try:
                _decode(capture, damaged, to_the_end=round_ % 2 == 0)
            except CDCError:
                raise
            except Exception as error:
                error.add_note(
                    f"in round {round_}, by {[event.hex() for event in damaged]}"
                )  # to be tried again
                raise
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < _MOST_MEMORY


def _nested_in_itself(kind: int) -> bytes:
    """Return an array of one element that is the array."""
    return bytes((kind, 1, 0, 7, 0, kind, 0, 0))


def _repeated(count: int, length: int) -> bytes:
    """Return an array whose elements are all the same string."""
    start = 4 + 3 * count
    elements = b"".join(b"\x0c" + start.to_bytes(2, "little") for _ in range(count))
    size = start + 2 + length
    text = bytes((length & 0x7F | 0x80, length >> 7)) + b"x" * length
    return b"\x02" + count.to_bytes(2, "little") + size.to_bytes(2, "little") + elements + text


@pytest.mark.parametrize(
    "damaged",
    [
        _nested_in_itself(2),
        _nested_in_itself(0),
        _repeated(5000, 4000),
        b"\x02\xff\xff\xff\xff",
        b"\x0c\xff\xff\xff\xff\xff\xff",
    ],
    ids=[
        "array in itself",
        "object in itself",
        "one string many times",
        "too many elements",
        "endless length",
    ],
)
def test_a_document_costs_no_more_than_its_size(damaged: bytes) -> None:
    with pytest.raises(UNREADABLE):
        document(damaged)


def test_a_document_whose_strings_lie_side_by_side_is_read() -> None:
    assert document(_repeated(1, 4000)) == b'["' + b"x" * 4000 + b'"]'


@pytest.mark.parametrize("path", ["$[0", "$.", "a", '$."a', "$[99999999999999999999]", "$.a.b", "$[1].x"])
def test_a_partial_update_of_what_is_not_there_is_refused(path: str) -> None:
    differences = bytes((0, len(path))) + path.encode() + b"\x02\x04\x00"
    with pytest.raises(UNREADABLE):
        patch(_repeated(1, 200), differences)


def test_rows_that_do_not_end_with_their_event_are_refused() -> None:
    (capture, *_) = binlog_captures("rows")
    events = capture.raw()
    place = next(place for place, event in enumerate(events) if event[4] == 23)
    cut = events[place][:-7] + events[place][-4:]
    with pytest.raises(SourceError, match=r"rows of captured\.people that cannot be read") as caught:
        read_all(capture.decoder(), [*events[:place], cut])
    assert "--accept-gap" in (caught.value.hint or "")


def test_rows_without_columns_and_with_bytes_are_refused() -> None:
    (capture, *_) = binlog_captures("images")
    events = capture.raw()
    place = next(place for place, event in enumerate(events) if event[4] == 23)
    longer = events[place][:-4] + b"\xff" + events[place][-4:]
    with pytest.raises(SourceError, match="no columns, but they have bytes"):
        read_all(capture.decoder(), [*events[:place], longer])


def test_a_value_that_is_not_what_its_type_says_is_refused_with_its_place() -> None:
    (capture,) = binlog_captures("documents")
    events = capture.raw()
    place = next(place for place, event in enumerate(events) if event[4] == 30)
    members = b"\x00\x03\x00y\x01"  # an object of three, and its size
    assert members in events[place]
    damaged = events[place].replace(members, b"\x00\xff\xffy\x01")
    (change, *_) = read_all(capture.decoder(), [*events[:place], damaged])
    with pytest.raises(SourceError, match=r"captured\.t\.a cannot be read.* It is at binlog") as caught:
        change.to_json()
    assert caught.value.hint
