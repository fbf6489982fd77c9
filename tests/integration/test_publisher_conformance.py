"""What every publisher promises (`listener.core.publisher.Publisher`), tested on each broker."""

from __future__ import annotations

import uuid
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from harness.waiting import at_most, wait_until
from listener.core.publisher import BrokerError, CheckpointMovedError, StoppedError
from listener.core.source import Saved
from listener.publish.kombu.publisher import KombuPublisher
from listener.publish.parked import parked_key, read_parked
from listener.publish.redis.publisher import RedisPublisher
from tests.support.proxy import Proxy
from tests.support.publishing import (
    SOURCE,
    celery_app,
    change,
    changes,
    fire,
    in_background,
    messages,
    position,
    router_to,
    waits,
)
from tests.support.rabbitmq import drain, row_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import redis

    from harness.machine_servers import RabbitMQServer
    from listener.core.publisher import Publisher
    from tests.conftest import Broker

_QUICK = {"batch_wait": 0.25, "coalesce_interval": 0.1}


@dataclass
class Target:
    """One broker behind a proxy, and publishers that send to a queue of the test's own."""

    make: Callable[[int], Publisher]  # with the port of the broker
    proxy: Proxy
    port: int
    checkpoints: redis.Redis
    take: Callable[[], list[Any]]  # all messages of the queue, the next one first
    rows: Callable[[list[Any]], list[int]]
    task_ids: Callable[[list[Any]], list[str]]
    stack: ExitStack

    def publisher(self, *, attached: bool = True, behind_proxy: bool = False) -> Publisher:
        publisher = self.make(self.proxy.port if behind_proxy else self.port)
        self.stack.callback(publisher.close)
        if attached:
            publisher.attach(SOURCE)
        return publisher


@pytest.fixture(params=["valkey_server", "redis_server", "rabbitmq_server"])
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    server = request.getfixturevalue(request.param)
    queue = f"queue-{uuid.uuid4().hex[:8]}"
    with ExitStack() as stack:
        if request.param == "rabbitmq_server":
            yield _on_rabbitmq(server, request.getfixturevalue("broker"), queue, stack)
        else:
            client = stack.enter_context(_emptied(server))
            yield _on_redis(server.port, client, queue, stack)


def _emptied(server: Any) -> redis.Redis:
    import redis

    client = redis.Redis.from_url(server.url)
    client.flushall()
    return client


def _on_redis(port: int, client: redis.Redis, queue: str, stack: ExitStack) -> Target:
    def make(port: int) -> Publisher:
        app = celery_app(f"redis://127.0.0.1:{port}/0", task_default_queue=queue)
        return RedisPublisher(app, name="test", **_QUICK)

    def take() -> list[Any]:
        found = messages(client, queue)
        client.delete(queue)
        return found

    return Target(
        make,
        stack.enter_context(Proxy(port)),
        port,
        client,
        take,
        rows=lambda found: [message["body"][0][0]["after"]["id"] for message in found],
        task_ids=lambda found: [message["headers"]["id"] for message in found],
        stack=stack,
    )


def _on_rabbitmq(server: RabbitMQServer, broker: Broker, queue: str, stack: ExitStack) -> Target:
    def make(port: int) -> Publisher:
        url = server.url.replace(f":{server.port}", f":{port}")
        return KombuPublisher(celery_app(url, task_default_queue=queue), broker.cache_url, name="test")

    return Target(
        make,
        stack.enter_context(Proxy(server.port)),
        server.port,
        broker.cache,
        lambda: drain(server, queue),
        rows=row_ids,
        task_ids=lambda found: [message["correlation_id"] for message in found],
        stack=stack,
    )


def test_before_the_first_batch_there_is_no_checkpoint(target: Target) -> None:
    publisher = target.publisher(attached=False)
    assert publisher.read_checkpoint() is None
    assert publisher.attach(SOURCE) is None
    assert publisher.flush() is None


def test_without_pipelining_a_batch_is_confirmed_when_publish_returns(target: Target) -> None:
    publisher = target.publisher()
    for first in (1, 101, 201):
        calls = fire(router_to(), changes(first, first + 99))
        assert publisher.publish(calls, checkpoint=position(first + 99)) == position(first + 99)
    assert publisher.flush() == position(300)
    assert target.rows(target.take()) == list(range(1, 301))
    assert target.publisher(attached=False).read_checkpoint() == Saved(position(300))


def test_a_batch_without_tasks_moves_the_checkpoint(target: Target) -> None:
    publisher = target.publisher()
    assert publisher.publish((), checkpoint=position(7)) == position(7)
    assert target.publisher(attached=False).attach(SOURCE) == position(7)


def test_a_pipelined_batch_is_confirmed_by_the_next_call(target: Target) -> None:
    publisher, router = target.publisher(), router_to()
    known = publisher.publish(fire(router, [change(1)]), checkpoint=position(1), pipelined=True)
    assert known in {None, position(1)}
    known = publisher.publish(fire(router, [change(2)]), checkpoint=position(2), pipelined=True)
    assert known in {position(1), position(2)}
    assert publisher.flush() == position(2)
    publisher.publish(fire(router, [change(3)]), checkpoint=position(3), pipelined=True)
    assert publisher.read_checkpoint() == Saved(position(3))
    publisher.publish(fire(router, [change(4)]), checkpoint=position(4), pipelined=True)
    assert publisher.attach(SOURCE) == position(4)
    assert target.rows(target.take()) == [1, 2, 3, 4]


def test_notes_stay_with_the_checkpoint_until_others_replace_them(target: Target) -> None:
    publisher, reader = target.publisher(), target.publisher(attached=False)
    publisher.publish((), checkpoint=position(1), notes="tables: tickets")
    assert reader.read_checkpoint() == Saved(position(1), "tables: tickets")
    publisher.publish((), checkpoint=position(1), notes="tables: tickets, users")
    publisher.publish(fire(router_to(), [change(2)]), checkpoint=position(2))
    assert reader.read_checkpoint() == Saved(position(2), "tables: tickets, users")


def test_the_checkpoint_says_when_its_last_change_was_committed(target: Target) -> None:
    publisher, event = target.publisher(), change(1)
    publisher.publish(fire(router_to(), [event]), checkpoint=position(1), as_of=event.committed_at)
    as_of = target.checkpoints.hget("cdc:test:checkpoint", "as_of")
    assert as_of == event.committed_at.isoformat().encode()


def test_reading_the_checkpoint_changes_nothing(target: Target) -> None:
    publisher, reader = target.publisher(), target.publisher(attached=False)
    publisher.publish(fire(router_to(), [change(1)]), checkpoint=position(1))
    before = target.checkpoints.hgetall("cdc:test:checkpoint")
    for each in (publisher, reader, publisher):
        assert each.read_checkpoint() == Saved(position(1))
    assert target.checkpoints.hgetall("cdc:test:checkpoint") == before
    publisher.publish(fire(router_to(), [change(2)]), checkpoint=position(2))
    assert target.rows(target.take()) == [1, 2]


def test_a_reader_of_the_checkpoint_does_not_miss_what_another_listener_does_next(target: Target) -> None:
    ours, other = target.publisher(), target.publisher()
    assert ours.read_checkpoint() is None
    other.publish((), checkpoint=position(1))
    assert ours.read_checkpoint() == Saved(position(1))
    with pytest.raises(CheckpointMovedError):
        ours.publish(fire(router_to(), [change(1)]), checkpoint=position(1))


def test_another_listener_that_took_over_is_noticed_and_reading_goes_on_where_it_was(target: Target) -> None:
    ours, other = target.publisher(), target.publisher()
    other.publish((), checkpoint=position(5))
    with pytest.raises(CheckpointMovedError):
        ours.publish((), checkpoint=position(1))
    assert ours.attach(SOURCE) == position(5)
    assert ours.publish(fire(router_to(), [change(6)]), checkpoint=position(6)) == position(6)
    assert target.rows(target.take()) == [6]


def test_an_error_of_a_pipelined_batch_comes_out_of_the_call_that_waits_for_it(target: Target) -> None:
    ours, other = target.publisher(), target.publisher()
    other.publish((), checkpoint=position(5))

    def publish_and_wait() -> None:
        ours.publish((), checkpoint=position(1), pipelined=True)
        ours.flush()

    with pytest.raises(CheckpointMovedError):
        publish_and_wait()
    assert ours.attach(SOURCE) == position(5)
    other.publish((), checkpoint=position(6))
    with suppress(CheckpointMovedError):  # a publisher may wait at once
        ours.publish((), checkpoint=position(7), pipelined=True)
    assert ours.read_checkpoint() == Saved(position(6))
    assert ours.attach(SOURCE) == position(6)


def test_the_checkpoint_of_another_database_is_an_error_with_a_hint(target: Target) -> None:
    target.publisher().publish((), checkpoint=position(1))
    with pytest.raises(BrokerError) as raised:
        target.publisher(attached=False).attach("beef")
    assert raised.value.code == "checkpoint_of_other_database"
    assert "redis-cli DEL cdc:test:checkpoint" in (raised.value.hint or "")


def test_a_change_that_a_route_could_not_take_is_parked(target: Target) -> None:
    router = router_to(args=lambda change: [change.row["missing"]])
    publisher = target.publisher()
    assert publisher.publish(fire(router, changes(1, 2)), checkpoint=position(2)) == position(2)
    parked = list(read_parked(target.checkpoints, parked_key("cdc:test")))
    assert sorted(each.change.row["id"] for each in parked) == [1, 2]


def test_a_task_that_is_published_again_has_the_id_that_it_had(target: Target) -> None:
    seen = []
    for _run in range(2):
        target.publisher().publish(fire(router_to(), changes(1, 3)), checkpoint=position(3))
        seen.append(target.task_ids(target.take()))
        target.checkpoints.delete("cdc:test:checkpoint")
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == 3


@pytest.mark.parametrize("ends", [False, True], ids=["while it runs", "when it ends"])
def test_what_was_deferred_is_released_without_another_change(target: Target, *, ends: bool) -> None:
    publisher, found = target.publisher(), list[Any]()
    router = router_to(batch=100)
    publisher.publish(fire(router, changes(1, 3)), checkpoint=position(3))

    def is_there() -> bool:
        publisher.publish((), checkpoint=position(3))
        found.extend(_taken(target))
        return bool(found)

    if ends:
        publisher.stop()
        publisher.close()
        found.extend(_taken(target))
    else:
        wait_until(is_there, what="the batch")
    (batch,) = found
    assert [each["after"]["id"] for each in batch["body"][0][0]] == [1, 2, 3]


def _taken(target: Target) -> list[Any]:
    try:
        return target.take()
    except Exception:  # noqa: BLE001 - RabbitMQ has no such queue before the first message
        return []


def test_a_publisher_waits_for_a_broker_that_is_away_and_goes_on(target: Target) -> None:
    publisher = target.publisher(behind_proxy=True)
    publisher.publish(fire(router_to(), [change(1)]), checkpoint=position(1))
    target.proxy.refuse()

    def publish() -> str | None:
        return publisher.publish(fire(router_to(), [change(2)]), checkpoint=position(2))

    with capture_logs() as logs, in_background(publish) as publishing:
        wait_until(lambda: waits(logs), what="it to wait")
        assert not publishing.done()
        target.proxy.refuse(refusing=False)
        assert publishing.result(at_most(60)) == position(2)
    assert [line for line in logs if line["event"] == "back"]
    assert set(target.rows(target.take())) == {1, 2}


def test_stop_ends_a_wait_and_nothing_of_the_batch_counts(target: Target) -> None:
    publisher = target.publisher(behind_proxy=True)
    publisher.publish(fire(router_to(), [change(1)]), checkpoint=position(1))
    target.proxy.refuse()

    def publish() -> str | None:
        return publisher.publish(fire(router_to(), [change(2)]), checkpoint=position(2))

    with capture_logs() as logs, in_background(publish) as publishing:
        wait_until(lambda: waits(logs), what="it to wait")
        publisher.stop()
        with pytest.raises(StoppedError):
            publishing.result(at_most(60))
    target.proxy.refuse(refusing=False)
    assert target.publisher(attached=False).read_checkpoint() == Saved(position(1))


def test_a_batch_that_need_not_wait_is_still_published_after_stop(target: Target) -> None:
    publisher = target.publisher()
    publisher.stop()
    assert publisher.publish(fire(router_to(), [change(1)]), checkpoint=position(1)) == position(1)
    assert target.rows(target.take()) == [1]


def test_closing_twice_and_before_attach_is_fine(target: Target) -> None:
    unused, used = target.publisher(attached=False), target.publisher()
    used.publish((), checkpoint=position(1))
    for each in (unused, used):
        each.close()
        each.close()
