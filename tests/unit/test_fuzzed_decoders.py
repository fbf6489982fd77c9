"""Both plugins' decoders on damaged messages: they return, or raise the one error that the loop knows."""

from __future__ import annotations

import random
import tracemalloc
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdc_tasks.routing.router import BinlogRouter, EventType, Parked
from listener.core.source import SourceError
from listener.postgres.codec.decoder import WALPosition
from listener.publish.parked import store_parked
from tests.support.postgres.captures import SCENARIOS, Capture, captures

if TYPE_CHECKING:
    from listener.postgres.codec.change import WALChange

_ROUNDS = 150  # for each capture
_MOST_MEMORY = 20_000_000  # bytes; the largest message has some thousand

every_capture = pytest.mark.parametrize(
    "capture",
    [capture for name in SCENARIOS for capture in captures(name)],
    ids=lambda each: f"{each.scenario}-{each}",
)


def _damage(payload: bytes, chance: random.Random) -> bytes:
    """Return the message as a bad cable, or a server of the next version, might send it."""
    data = bytearray(payload)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(6):
            case 0:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                data[at : at + 1] = bytes([chance.choice(b'\0\xff\x7f"\\{}[]tnubNKO')])
            case 2:
                del data[at:]
            case 3:
                del data[at : at + chance.randint(1, 8)]
            case 4:
                data[at:at] = chance.randbytes(chance.randint(1, 8))
            case _:
                data[at : at + 4] = chance.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0"])
    return bytes(data)


def _read(capture: Capture, payloads: list[bytes], after: WALPosition) -> None:
    """Do with the messages what the listener does: decode them, render each change, park what fails."""
    (route,) = _ROUTER.routes
    decoder = capture.decoder()
    decoder.skip_to(after)
    for payload in payloads:
        changes: list[WALChange] = []
        with suppress(SourceError):
            decoder.decode(payload, changes)
        for fired in _ROUTER.tasks_for(changes):
            assert fired.change.position
        store_parked("parked", [Parked(route, change, ValueError()) for change in changes])


def _of_any_kind(capture: Capture, seed: int) -> None:
    chance = random.Random(seed)
    payloads = capture.payloads()
    for at in chance.sample(range(len(payloads)), min(len(payloads), chance.randint(1, 3))):
        payloads[at] = _damage(payloads[at], chance)
    if chance.random() < 0.1:
        chance.shuffle(payloads)
    after = WALPosition(2**63, 0) if chance.random() < 0.1 else WALPosition(0, 0)
    _read(capture, payloads, after)


_ROUTER = BinlogRouter()
_ROUTER.register(
    "*",
    "*",
    EventType.ALL,
    "a.task",
    when=lambda change: change.changed("title") is not False or change.row or change.unavailable,
)


@every_capture
def test_damaged_messages_are_decoded_or_refused(capture: Capture) -> None:
    for seed in range(_ROUNDS):
        _of_any_kind(capture, seed)


@every_capture
def test_damaged_messages_take_no_memory(capture: Capture) -> None:
    tracemalloc.start()
    try:
        for seed in range(_ROUNDS // 10):
            _of_any_kind(capture, seed)
        _now, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < _MOST_MEMORY


@given(st.data())
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_messages_of_any_bytes_are_decoded_or_refused(data: st.DataObject) -> None:
    capture = data.draw(st.sampled_from(captures("rows")))
    payloads = capture.payloads()
    kind = data.draw(st.sampled_from(sorted({payload[:12] for payload in payloads})))
    at = data.draw(st.integers(0, len(payloads)))
    head = kind[: data.draw(st.integers(0, len(kind)))]
    payloads[at:at] = [head + data.draw(st.binary(max_size=60))]
    _read(capture, payloads, WALPosition(0, 0))
