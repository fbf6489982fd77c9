"""Up to which place a source may forget its log, and from which one a broker that lost its data is mended."""

from __future__ import annotations

from listener.core.replay_window import ReplayWindow


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_without_a_window_it_is_the_last_published() -> None:
    window: ReplayWindow[str] = ReplayWindow(0)
    assert window.place is None
    for position in ("a", "b", "c"):
        window.published(position)
        assert window.place == position


def test_a_window_stays_behind_by_its_length_from_its_start_on() -> None:
    clock = Clock()
    window: ReplayWindow[str] = ReplayWindow(60, clock=clock)
    window.restart("0")
    seen = []
    for second in range(0, 200, 10):
        clock.now = 100.0 + second
        window.published(str(second))
        seen.append(window.place)
    assert seen[:7] == ["0"] * 7
    assert seen[7:] == [str(second - 60) for second in range(70, 200, 10)]


def test_many_batches_take_no_memory() -> None:
    clock = Clock()
    window: ReplayWindow[str] = ReplayWindow(600, clock=clock)
    for number in range(100_000):
        clock.now += 0.01
        window.published(str(number))
    assert len(window._published) <= 1001


def test_a_window_moves_on_with_the_time() -> None:
    clock = Clock()
    window: ReplayWindow[str] = ReplayWindow(60, clock=clock)
    window.published("a")
    window.move()
    assert window.place is None
    clock.now += 60
    window.move()
    assert window.place == "a"


def test_going_back_forgets_what_was_published_beyond() -> None:
    clock = Clock()
    window: ReplayWindow[str] = ReplayWindow(60, clock=clock)
    window.published("a")
    clock.now += 30
    window.published("lost")
    window.restart("a")
    clock.now += 61
    window.published("b")
    assert window.place == "a"
