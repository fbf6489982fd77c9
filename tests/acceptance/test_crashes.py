"""Real processes and servers are killed while clients write: each committed change is in the queue exactly once.

`make chaos` is the long form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import count

import pytest

from harness.listener_process import ListenerProcess
from harness.machine_servers import DebianPostgresServer, RedisServer
from harness.waiting import at_most, wait_until
from tests.acceptance.chaos import (
    FAULTS,
    Attack,
    attack,
    attack_broker,
    attack_database,
    attack_listener,
    disturb,
    kill_at,
)
from tests.acceptance.parking import POINTS
from tests.acceptance.world import World
from tests.acceptance.writers import Writers

_SEED = 20261122


def test_each_change_of_concurrent_clients_is_queued_once_in_commit_order_while_the_listener_is_killed() -> (
    None
):
    with World(seed=_SEED) as world:
        done = attack(world, _kills(world), seed=_SEED, rows_per_second=2_000)
        assert world.settle() == []
    assert sum(done.values()) >= 10
    assert done >= Counter(f"listener killed: {point}" for point in POINTS)


def _kills(world: World) -> Iterator[Attack]:
    """At each named point, then at random moments until 2,000 rows were inserted, updated and deleted."""
    for point in POINTS:
        yield partial(kill_at, point=point, hit=2, patience=at_most(20))
    for number in count(len(POINTS) + 1):
        yield attack_listener
        counts = world.ledger.count()
        if number >= 10 and all(counts.get(event, 0) >= 2_000 for event in ("insert", "update", "delete")):
            return


def test_a_broker_killed_with_its_file_on_disk_costs_nothing_and_doubles_nothing() -> None:
    with World(seed=_SEED) as world:
        attack(world, [attack_broker] * 4, seed=_SEED)
        assert world.settle() == []


def test_a_database_that_crashes_costs_nothing_and_doubles_nothing() -> None:
    with World(seed=_SEED) as world:
        attack(world, [attack_database] * 3, seed=_SEED)
        assert world.settle() == []


def test_a_network_that_fails_in_every_way_costs_nothing_and_doubles_nothing() -> None:
    with World(seed=_SEED) as world:
        cuts = [partial(disturb, fault=fault, towards="both", seconds=0.3) for fault in FAULTS]
        late = partial(disturb, fault="stalled, not for new connections", towards="broker", seconds=6)
        attack(world, [*cuts, late], seed=_SEED)
        assert world.settle() == []


def test_the_same_holds_on_debians_servers_with_wal2json() -> None:
    with World(
        seed=_SEED,
        database=DebianPostgresServer,
        broker=RedisServer,
        settings={"CDC_PLUGIN": "wal2json", "CDC_DURABILITY": "memory"},
    ) as world:
        points = ["sent", "after_publish", "inside_large_before", "after_acknowledge"]
        kills = [partial(kill_at, point=point, hit=2, patience=at_most(20)) for point in points]
        attack(world, [*kills, attack_broker, attack_database], seed=_SEED, rows_per_second=300)
        assert world.settle() == []


@pytest.mark.parametrize("point", ["before_publish", "sent", "before_acknowledge"])
def test_a_frozen_listener_that_wakes_up_after_another_took_over_doubles_nothing(point: str) -> None:
    with World(seed=_SEED) as world:
        with Writers(world.database.url, seed=_SEED):
            frozen = world.start_listener((point, 3))
            assert frozen.wait_parked(seconds=at_most(20))
            with ListenerProcess(world.environment) as standby:
                standby.wait_for("standby")
                world.end_wal_senders()  # as the server does with one that is silent for wal_sender_timeout
                standby.wait_for("streaming")
                published = world.published()
                wait_until(lambda: world.published() > published, timeout=20, what="the second to publish")
                frozen.unpark()
                frozen.wait_for("standby")
                assert standby.stop() == 0
            world.wait_for_progress()
        assert world.settle() == []
