"""What a snapshot shows, by a transaction's number of 32 bits; and how often the server is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from listener.core import visibility as waiting
from listener.core.visibility import VisibilityWait
from listener.core.wakeup import Wakeup
from listener.postgres.client import visibility
from listener.postgres.client.visibility import Snapshot, Visibility

if TYPE_CHECKING:
    from collections.abc import Iterator

_XIDS = 1 << 32


@pytest.mark.parametrize(
    ("text", "shown", "hidden"),
    [
        ("10:10:", [3, 9], [10, 11]),
        ("10:14:10,12", [9, 11, 13], [10, 12, 14, 20]),
        # The log's numbers have started again from 3, those before are of the end of the last round.
        (f"{_XIDS - 2}:{_XIDS + 5}:{_XIDS - 2},{_XIDS + 3}", [_XIDS - 9, _XIDS - 1, 4], [_XIDS - 2, 3, 5, 9]),
        (f"{3 * _XIDS + 3}:{3 * _XIDS + 3}:", [_XIDS - 1, _XIDS - 2_000_000_000], [3, 2_000_000_000]),
    ],
)
def test_a_snapshot_shows_what_has_ended(text: str, shown: list[int], hidden: list[int]) -> None:
    snapshot = Snapshot.parse(text)
    assert [xid for xid in (*shown, *hidden) if snapshot.shows(xid)] == shown


@given(
    xmin=st.integers(min_value=1 << 33, max_value=1 << 40),
    running=st.sets(st.integers(0, 50), max_size=10),
    beyond=st.integers(0, 60),
    age=st.integers(-1000, (1 << 31) - 2000),
)
def test_32_bits_say_the_same_as_64(xmin: int, running: set[int], beyond: int, age: int) -> None:
    xip = frozenset(xmin + each for each in running if each < beyond)
    full = xmin - age
    expected = full < xmin or (full < xmin + beyond and full not in xip)
    assert Snapshot(xmin, xmin + beyond, xip).shows(full % _XIDS) is expected


class _Server:
    """Answers with one snapshot after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: str) -> None:
        self._answers: Iterator[str] = iter(answers)
        self.asked = 0
        self.now = 0.0
        monkeypatch.setattr(visibility, "fetch_value", self._answer)
        monkeypatch.setattr(visibility, "monotonic", lambda: self.now)

    def _answer(self, *_: Any) -> str:
        self.asked += 1
        return next(self._answers)


class _Session:
    def close(self) -> None:
        pass


def _visibility() -> Visibility:
    session: Any = _Session()
    return Visibility(lambda: session)


def test_the_server_is_asked_only_about_what_is_newer_than_the_last_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = _Server(monkeypatch, "100:100:", "100:120:105", "121:121:")
    seen = _visibility()
    assert [seen.shows(xid) for xid in (90, 99, 7)] == [True, True, True]
    assert server.asked == 1
    assert [seen.shows(xid) for xid in (104, 119, 99)] == [True, True, True]
    assert server.asked == 2
    assert seen.shows(105)
    assert server.asked == 3


def test_an_old_answer_is_not_used_as_xids_may_have_wrapped_around(monkeypatch: pytest.MonkeyPatch) -> None:
    later = 100 + (1 << 31) + 50
    server = _Server(monkeypatch, "100:100:", f"{later}:{later + 1}:{later}", f"{later + 1}:{later + 1}:")
    seen = _visibility()
    assert seen.shows(99)
    server.now += 100_000
    assert not seen.shows(later)
    assert seen.shows(later)


def test_a_wait_is_told_and_ends_by_itself_or_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_TOLD_AFTER", 0.0)
    wakeup = Wakeup()
    wait = VisibilityWait(wakeup, hint="the cure")
    answers = iter([True, *[False] * 5, True])
    with capture_logs() as logs:
        assert wait.until(lambda: next(answers), "0/1", seconds=60)
        assert (wait.current, logs) == (None, [])
        assert not wait.until(lambda: next(answers), "0/2", seconds=0)
        first = wait.current
        assert first is not None
        assert first.position == "0/2"
        assert wait.until(lambda: next(answers), "0/2", seconds=60)
        assert wait.current is None
        wakeup.set()
        assert not wait.until(lambda: False, "0/3", seconds=3600)
    assert [(line["event"], line["position"], line.get("hint")) for line in logs] == [
        ("commit_not_visible", "0/2", "the cure"),
        ("commit_visible", "0/2", None),
        ("commit_not_visible", "0/3", "the cure"),
    ]
