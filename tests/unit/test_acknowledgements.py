"""How much of its log the server may discard."""

from __future__ import annotations

import tracemalloc

from listener.postgres.log.acknowledgements import Acknowledgements


class _Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_what_is_published_may_be_acknowledged_up_to_its_transactions_end() -> None:
    acknowledgements = Acknowledgements(replay_window=0)
    acknowledgements.ended(15)
    acknowledgements.ended(25)
    assert acknowledgements.published(13) == 0
    assert acknowledgements.published(14) == 15
    assert acknowledgements.published(20) == 15
    assert acknowledgements.published(30) == 25


def test_with_a_replay_window_it_may_be_acknowledged_that_much_later() -> None:
    clock = _Clock()
    acknowledgements = Acknowledgements(replay_window=60, clock=clock)
    acknowledgements.ended(15)
    assert acknowledgements.published(14) == 0
    clock.now += 59
    acknowledgements.ended(25)
    assert acknowledgements.published(24) == 0
    clock.now += 2
    assert acknowledgements.published(24) == 15
    clock.now += 60
    assert acknowledgements.published(24) == 25


def test_a_long_replay_window_takes_no_memory_for_each_transaction() -> None:
    clock = _Clock()
    acknowledgements = Acknowledgements(replay_window=3600, clock=clock)
    tracemalloc.start()
    try:
        for end in range(1, 200_000):
            clock.now += 0.001
            acknowledgements.ended(end)
            acknowledgements.published(end)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 1_000_000
