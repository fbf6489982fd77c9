"""Which messages a worker keeps until they are due, and which of their headers stay."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cdc_tasks.broker.delays import due_at, eta_by_this_clock, with_countdown, without_countdown
from cdc_tasks.broker.redis.later import KEEP_BYTES, KEEP_MESSAGES, KEEP_SECONDS, is_to_wait

_NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "unacknowledged", "size", "waits"),
    [
        (KEEP_SECONDS + 0.1, 0, 1, True),
        (KEEP_SECONDS, 0, 1, False),
        (1, KEEP_MESSAGES - 1, 1, False),
        (1, KEEP_MESSAGES, 1, True),
        (1, 0, KEEP_BYTES, False),
        (1, 0, KEEP_BYTES + 1, True),
        (0, KEEP_MESSAGES, KEEP_BYTES + 1, False),  # it is due
        (-3600, KEEP_MESSAGES, KEEP_BYTES + 1, False),
        (1e12, 0, 1, True),
    ],
)
def test_what_is_due_late_is_large_or_one_too_many_waits_in_redis(
    seconds: float, unacknowledged: int, size: int, waits: bool
) -> None:
    assert is_to_wait(seconds, unacknowledged=unacknowledged, size=size) is waits


def test_a_countdown_is_over_when_its_message_comes_back_whatever_its_eta_says() -> None:
    headers = without_countdown(with_countdown({"eta": "2026-01-02T00:00:00+00:00"}, 60))
    assert eta_by_this_clock(headers, _NOW) == _NOW.isoformat()


def test_an_eta_alone_stays_as_it_is() -> None:
    headers = {"eta": "2026-01-02T00:00:00+00:00"}
    assert without_countdown(headers) == headers


@pytest.mark.parametrize("eta", [None, 5, "", "soon", "2026-13-01"])
def test_an_eta_that_cannot_be_read_is_none(eta: object) -> None:
    assert due_at({"eta": eta}) is None


@pytest.mark.parametrize(
    "eta", ["2026-01-01T12:00:00", "2026-01-01T12:00:00+00:00", "2026-01-01T14:00:00+02:00"]
)
def test_an_eta_without_a_zone_is_utc(eta: str) -> None:
    assert due_at({"eta": eta}) == _NOW
