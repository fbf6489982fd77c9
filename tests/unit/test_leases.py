"""A lease expires when its counter has not changed for the timeout, by the observer's own clock."""

from __future__ import annotations

from cdc_tasks.broker.redis.leases import Lease, Observer


def observer() -> Observer:
    return Observer(timeout=60, longest_step=10)


def test_a_counter_that_stands_still_expires_after_the_timeout() -> None:
    seen = observer()
    looks = [seen.expired({"w": 7}, now) for now in range(0, 70, 5)]
    assert looks[:12] == [[]] * 12
    assert looks[12:] == [[Lease("w", 7)]] * 2


def test_a_counter_that_moves_never_expires_however_slowly_it_is_looked_at() -> None:
    seen = observer()
    for number in range(100):
        assert seen.expired({"w": number}, number * 59.0) == []


def test_one_that_goes_back_is_alive_too() -> None:
    """After a failover to a replica that lacks the last counts."""
    seen = observer()
    for now in range(0, 50, 5):
        seen.expired({"w": 9}, now)
    assert seen.expired({"w": 8}, 50) == []
    assert seen.expired({"w": 8}, 55) == []


def test_a_pause_of_the_observer_counts_as_one_look() -> None:
    """The machine was suspended, and the worker on it too."""
    seen = observer()
    seen.expired({"w": 7}, 0)
    assert seen.expired({"w": 7}, 3600) == []
    assert seen.expired({"w": 8}, 3605) == []


def test_what_has_gone_is_forgotten() -> None:
    seen = observer()
    for now in range(0, 60, 5):
        seen.expired({"w": 7}, now)
    seen.expired({}, 60)
    assert seen.expired({"w": 7}, 65) == []
