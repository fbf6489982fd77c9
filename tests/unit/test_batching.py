"""What becomes of calls that are coalesced or batched, by a clock that the test sets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cdc_tasks.routing.router import BinlogRouter, Call, EventType, Parked
from cdc_tasks.testing import row_change
from listener.publish.batching import Batcher, batch_together


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Store:
    """Redis as far as a batcher needs it: runs the commands that save what is deferred."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}
        self.lists: dict[str, list[bytes]] = {}

    def run(self, commands: list[Any]) -> None:
        for name, key, *words in commands:
            if name == "HSET":
                self.records[words[0]] = words[1]
            elif name == "HDEL":
                del self.records[words[0]]
            elif name == "RPUSH":
                self.lists.setdefault(key, []).extend(words)
            else:
                assert name == "DEL"
                del self.lists[key]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def batcher(clock: Clock) -> Batcher:
    return Batcher("held", interval=0.5, longest=1.0, clock=clock)


def refresh_router() -> BinlogRouter:
    router = BinlogRouter()
    router.register(
        "public", "*", EventType.ALL, "refresh", args=lambda change: [change.table], coalesce=True
    )
    return router


def index_router(batch: int) -> BinlogRouter:
    router = BinlogRouter()
    router.register("public", "events", "insert", "index", batch=batch)
    return router


def fired(router: BinlogRouter, table: str, *ids: int) -> list[Call | Parked]:
    return list(router.tasks_for([row_change(table, "insert", after={"id": number}) for number in ids]))


def ids_of(call: Call) -> list[int]:
    ((changes),) = json.loads(b"[%b]" % call.arguments)
    return [change["after"]["id"] for change in changes]


def test_the_first_coalesced_call_goes_out_at_once_and_one_follows_when_the_interval_ends(
    batcher: Batcher, clock: Clock
) -> None:
    router = refresh_router()
    assert [call.arguments for call in batcher.batch(fired(router, "roles", 1, 2, 3)).tasks] == [b'"roles"']
    assert batcher.batch(fired(router, "roles", 4)).tasks == []
    clock.now += 0.4
    assert batcher.batch(fired(router, "roles", 5)).tasks == []
    clock.now += 0.1
    assert [call.arguments for call in batcher.batch(()).tasks] == [b'"roles"']
    clock.now += 0.5
    assert batcher.batch(()).tasks == []


def test_different_arguments_are_coalesced_apart(batcher: Batcher) -> None:
    router = refresh_router()
    calls = fired(router, "roles", 1) + fired(router, "statuses", 1) + fired(router, "roles", 2)
    assert [call.arguments for call in batcher.batch(calls).tasks] == [b'"roles"', b'"statuses"']


def test_ten_thousand_changes_in_a_second_lead_to_at_most_five_tasks(batcher: Batcher, clock: Clock) -> None:
    router, tasks, last = refresh_router(), 0, 0.0
    for number in range(10_000):
        clock.now += 1 / 10_000
        tasks += len(batcher.batch(fired(router, "roles", number)).tasks)
    changed_last = clock.now
    for _ in range(8):
        clock.now += 0.25
        if batcher.batch(()).tasks:
            tasks, last = tasks + 1, clock.now
    assert tasks <= 5
    assert last > changed_last


def test_a_full_batch_goes_out_in_order_and_the_rest_waits(batcher: Batcher, clock: Clock) -> None:
    router = index_router(3)
    assert [ids_of(call) for call in batcher.batch(fired(router, "events", 1, 2)).tasks] == []
    assert [ids_of(call) for call in batcher.batch(fired(router, "events", 3, 4, 5, 6, 7)).tasks] == [
        [1, 2, 3],
        [4, 5, 6],
    ]
    clock.now += 1.0
    assert [ids_of(call) for call in batcher.batch(()).tasks] == [[7]]
    assert batcher.batch(()).tasks == []


def test_a_batch_is_named_after_its_first_change_and_how_many_follow(batcher: Batcher, clock: Clock) -> None:
    """On a broker that may get it twice, the second one can end elsewhere: it is another task then."""
    router = index_router(3)
    calls = fired(router, "events", 1, 2, 3)
    (full,) = batcher.batch(calls).tasks
    batcher.batch(calls[:2])
    clock.now += 1
    (early,) = batcher.batch(()).tasks
    batcher.batch(calls[:1])
    clock.now += 1
    (lone,) = batcher.batch(()).tasks
    assert isinstance(calls[0], Call)
    change_id, key = calls[0].change.id, router.routes[0].id
    assert [each.id for each in (full, early, lone)] == [
        f"{change_id}+2-{key}",
        f"{change_id}+1-{key}",
        f"{change_id}-{key}",
    ]


def test_a_batch_of_wide_rows_goes_out_before_it_takes_much_memory(batcher: Batcher) -> None:
    router = index_router(1000)
    wide = [row_change("events", "insert", after={"id": n, "text": "x" * 100_000}) for n in range(25)]
    tasks = batcher.batch(router.tasks_for(wide)).tasks
    assert [len(ids_of(call)) for call in tasks] == [10, 10]


def test_at_the_end_all_goes_out_due_or_not(batcher: Batcher) -> None:
    store, router = Store(), index_router(3)
    router.register("public", "roles", "insert", "refresh", args=lambda change: [change.table], coalesce=True)
    store.run(batcher.batch(fired(router, "events", 1, 2) + fired(router, "roles", 1)).saving)
    store.run(batcher.batch(fired(router, "roles", 2)).saving)
    batched = batcher.release_all()
    store.run(batched.saving)
    assert [task.route.task for task in batched.tasks] == ["index", "refresh"]
    assert store.records == {}
    assert store.lists == {}


def test_with_args_a_batch_is_a_list_of_argument_lists(batcher: Batcher) -> None:
    router = BinlogRouter()
    router.register(
        "public", "events", "insert", "index", args=lambda change: [change.row["id"], "x"], batch=2
    )
    (task,) = batcher.batch(fired(router, "events", 1, 2)).tasks
    assert json.loads(b"[%b]" % task.arguments) == [[[1, "x"], [2, "x"]]]


def test_with_kwargs_a_batch_is_a_list_of_dicts(batcher: Batcher) -> None:
    router = BinlogRouter()
    router.register("public", "events", "insert", "index", kwargs={"event": "id"}, batch=2)
    (task,) = batcher.batch(fired(router, "events", 1, 2)).tasks
    assert json.loads(b"[%b]" % task.arguments) == [[{"event": 1}, {"event": 2}]]
    assert task.kwargs == b""


def test_calls_are_coalesced_on_their_keyword_arguments_and_keep_the_routes_options_after_a_crash(
    batcher: Batcher, clock: Clock
) -> None:
    router, store = BinlogRouter(), Store()
    route = router.register(
        "public", "t", "insert", "refresh", kwargs=["id"], coalesce=True, countdown=5, priority=3, expires=60
    )
    at_once = batcher.batch(fired(router, "t", 1, 2, 1)).tasks
    assert [call.kwargs for call in at_once] == [b'"id": 1', b'"id": 2']
    store.run(batcher.batch(fired(router, "t", 1, 2, 2)).saving)
    after_the_crash = Batcher("held", interval=0.5, longest=1.0, clock=clock)
    after_the_crash.restore(store.records.values(), store.lists.__getitem__)
    batched = after_the_crash.batch(())
    store.run(batched.saving)
    assert [call.kwargs for call in batched.tasks] == [b'"id": 1', b'"id": 2']
    assert {call.route.sent_as for call in batched.tasks} == {route.sent_as}
    assert store.records == {}


def test_what_was_deferred_is_due_at_once_after_a_crash(batcher: Batcher, clock: Clock) -> None:
    store, router = Store(), index_router(3)
    router.register("public", "roles", "insert", "refresh", args=lambda change: [change.table], coalesce=True)
    store.run(batcher.batch(fired(router, "events", 1, 2) + fired(router, "roles", 1)).saving)
    store.run(batcher.batch(fired(router, "roles", 2)).saving)

    after_the_crash = Batcher("held", interval=0.5, longest=1.0, clock=clock)
    after_the_crash.restore(store.records.values(), store.lists.__getitem__)
    batched = after_the_crash.batch(())
    store.run(batched.saving)
    batch, refresh = batched.tasks
    assert (batch.route.task, ids_of(batch)) == ("index", [1, 2])
    assert (refresh.route.task, refresh.arguments) == ("refresh", b'"roles"')
    assert store.records == {}
    assert store.lists == {}


def test_nothing_stays_behind_of_what_went_out(batcher: Batcher, clock: Clock) -> None:
    store, router = Store(), index_router(3)
    for numbers in ((1, 2), (3, 4), (5,), (6, 7, 8)):
        store.run(batcher.batch(fired(router, "events", *numbers)).saving)
    assert [json.loads(item)["after"]["id"] for items in store.lists.values() for item in items] == [7, 8]
    clock.now += 2
    store.run(batcher.batch(()).saving)
    assert store.records == {}
    assert store.lists == {}


def test_plain_calls_pass_in_their_order_and_save_nothing(batcher: Batcher) -> None:
    router = BinlogRouter()
    router.register("public", "events", "insert", "plain")
    calls = fired(router, "events", 1, 2, 3)
    assert batcher.batch(calls) == (calls, [], [])


def test_where_nothing_can_be_deferred_all_goes_out_with_what_it_came_with() -> None:
    router = index_router(2)
    router.register(
        "public", "events", "insert", "refresh", args=lambda change: [change.table], coalesce=True
    )
    tasks, parked = batch_together(fired(router, "events", 1, 2, 3))
    assert sorted(task.route.task for task in tasks) == ["index", "index", "refresh"]
    assert parked == []
