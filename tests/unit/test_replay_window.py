"""From which position a broker that lost its data gets its changes again."""

from __future__ import annotations

import tracemalloc

from listener.core.replay_window import ReplayWindow


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_without_a_window_it_is_the_last_published() -> None:
    window = ReplayWindow(0, start="start")
    assert window.position == "start"
    for position in ("a", "b", "c"):
        assert window.published(position) == position
        assert window.position == position


def test_a_window_stays_behind_by_its_length() -> None:
    clock = Clock()
    window = ReplayWindow(60, start="start", clock=clock)
    seen = []
    for second in range(0, 200, 10):
        clock.now = 100.0 + second
        seen.append(window.published(str(second)))
    assert seen[:6] == ["start"] * 6
    assert seen[6:] == [str(second - 60) for second in range(60, 200, 10)]


def test_the_last_position_of_a_step_counts() -> None:
    clock = Clock()
    window = ReplayWindow(60, start="start", clock=clock)
    window.published("a")
    clock.now += 0.01
    window.published("b")
    clock.now += 61
    assert window.published("c") == "b"


def test_many_batches_take_no_memory() -> None:
    clock = Clock()
    window = ReplayWindow(600, start="", clock=clock)
    tracemalloc.start()
    try:
        for number in range(100_000):
            clock.now += 0.01
            window.published(str(number))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 1_000_000


def test_going_back_forgets_what_was_published_after_it() -> None:
    clock = Clock()
    window = ReplayWindow(60, start="", clock=clock)
    window.published("a")
    clock.now += 30
    window.published("lost")
    window.restart("a")
    clock.now += 61
    window.published("b")
    assert window.position == "a"
