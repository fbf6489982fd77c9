"""A queue that nobody empties does not stop the routes to other queues, if its routes say so."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from cdc_tasks.routing.router import BinlogRouter, EventType, RouteError
from harness.waiting import wait_until
from listener.core.publisher import StoppedError
from listener.daemon.status import read_saved_position
from listener.publish.check_broker import check_broker
from listener.publish.redis.connection import RedisConnection
from listener.publish.redis.set_aside import set_aside_key
from tests.support.publishing import (
    SOURCE,
    celery_app,
    changes,
    fire,
    ids,
    in_background,
    position,
    redis_publisher,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

    from listener.publish.redis.publisher import RedisPublisher
    from tests.conftest import Broker

_LIST = f"{set_aside_key('cdc:test')}:full:full"


@pytest.fixture
def router() -> BinlogRouter:
    router = BinlogRouter()
    router.register("public", "tickets", EventType.ALL, "tests.slow", queue="full", on_full="set_aside")
    router.register("public", "tickets", EventType.ALL, "tests.quick", queue="other", on_full="pause")
    return router


class _Stream:
    """Publishes the changes 1, 2, … in batches of ten."""

    def __init__(self, publisher: RedisPublisher, router: BinlogRouter, after: int = 0) -> None:
        self._publisher = publisher
        self._router = router
        self.last = after

    def publish(self, batches: int, *, pipelined: bool = False) -> None:
        for _ in range(batches):
            first, self.last = self.last + 1, self.last + 10
            fired = fire(self._router, changes(first, self.last))
            self._publisher.publish(fired, checkpoint=position(self.last), pipelined=pipelined)

    def tick(self) -> None:
        self._publisher.publish((), checkpoint=position(self.last))


def _take(client: redis.Redis, queue: str, count: int) -> list[int]:
    """Take messages as a worker does, the oldest first; return the ids of their rows."""
    bodies = (json.loads(message)["body"] for message in client.rpop(queue, count) or ())
    return [json.loads(base64.b64decode(body))[0][0]["after"]["id"] for body in bodies]


def _drain(stream: _Stream, client: redis.Redis) -> Iterator[int]:
    while client.llen("full") or client.llen(_LIST):
        yield from _take(client, "full", 7)
        stream.tick()


@pytest.mark.parametrize("pipelined", [False, True])
def test_a_full_queue_stops_nobody_and_gets_its_messages_in_order(
    any_broker: Broker,
    router: BinlogRouter,
    pipelined: bool,
) -> None:
    client, taken = any_broker.client, list[int]()
    with redis_publisher(any_broker.url, options={"max_queue": 25, "max_set_aside": 1_000}) as publisher:
        stream = _Stream(publisher, router)
        for _ in range(10):  # "other" is emptied all the time, "full" is not
            stream.publish(1, pipelined=pipelined)
            taken += _take(client, "other", 10)
        publisher.flush()
        taken += _take(client, "other", 10)
        assert taken == list(range(1, 101))
        assert client.llen("full") <= 40  # the limit, and a batch that was under way
        assert client.llen(_LIST) >= 60
        slow = _take(client, "full", 20)
        stream.publish(2, pipelined=pipelined)  # new ones go behind those that wait
        publisher.flush()
        slow += _drain(stream, client)
    assert slow == list(range(1, 121))
    assert not client.exists(_LIST)


def test_the_next_listener_takes_over_what_is_set_aside(broker: Broker, router: BinlogRouter) -> None:
    with redis_publisher(broker.url, options={"max_queue": 25}) as publisher:
        stream = _Stream(publisher, router)
        for _ in range(6):
            stream.publish(1)
            broker.client.delete("other")
    assert broker.client.hgetall(set_aside_key("cdc:test")) == {b"full:full": b"full"}
    with redis_publisher(broker.url) as publisher:  # without a limit now
        stream = _Stream(publisher, router, after=60)
        stream.publish(1)
        stream.tick()
        stream.tick()
    assert ids(broker.client, "full") == list(range(1, 71))
    assert not broker.client.exists(set_aside_key("cdc:test"), _LIST)


def test_a_queue_that_may_grow_stops_nobody(broker: Broker) -> None:
    router = BinlogRouter()
    router.register("public", "tickets", EventType.ALL, "tests.task", queue="full", on_full="grow")
    with redis_publisher(broker.url, options={"max_queue": 25}) as publisher:
        _Stream(publisher, router).publish(10)
    assert broker.client.llen("full") == 100


def test_the_listener_pauses_if_too_much_is_set_aside_and_goes_on_with_the_room(
    broker: Broker, router: BinlogRouter
) -> None:
    with (
        capture_logs() as logs,
        redis_publisher(broker.url, options={"max_queue": 25, "max_set_aside": 30}) as publisher,
    ):
        stream = _Stream(publisher, router)

        def publish() -> None:
            for _ in range(10):
                stream.publish(1)
                broker.client.delete("other")

        with in_background(publish) as end:
            pause = wait_until(
                lambda: next((line for line in logs if line["event"] == "paused"), None), what="a pause"
            )
            assert (pause["setting"], pause["limit"]) == ("CDC_MAX_SET_ASIDE", 30)
            assert not end.done()
            slow: list[int] = []
            while not end.done():
                slow += _take(broker.client, "full", 7)
        slow += _drain(stream, broker.client)
    assert slow == list(range(1, 101))


def test_a_listener_that_pauses_over_what_is_set_aside_can_be_stopped(
    broker: Broker, router: BinlogRouter
) -> None:
    with (
        capture_logs() as logs,
        redis_publisher(broker.url, options={"max_queue": 5, "max_set_aside": 5}) as publisher,
    ):
        stream = _Stream(publisher, router)

        def publish() -> None:
            for _ in range(4):
                stream.publish(1)
                broker.client.delete("other")

        with in_background(publish) as end:
            wait_until(lambda: any(line["event"] == "paused" for line in logs), what="a pause")
            publisher.stop()
            assert isinstance(end.exception(), StoppedError)
    saved = int(
        broker.client.hget("cdc:test:checkpoint", "position").decode().split("/")[1].split(":")[0], 16
    )
    in_queue = [*ids(broker.client, "full"), *ids(broker.client, _LIST)]
    assert in_queue == list(range(1, saved + 1))


def test_a_policy_that_nobody_knows_is_refused() -> None:
    with pytest.raises(RouteError, match=r"on_full='drop' of the route to tests.task") as error:
        BinlogRouter().register("public", "tickets", EventType.ALL, "tests.task", on_full="drop")
    assert error.value.hint is not None
    assert "set_aside" in error.value.hint


def test_the_pause_of_one_route_holds_for_a_queue_that_it_shares(broker: Broker) -> None:
    router = BinlogRouter()
    router.register("public", "tickets", EventType.ALL, "tests.a", queue="full", on_full="grow")
    router.register("public", "tickets", EventType.ALL, "tests.b", queue="full")
    with (
        capture_logs() as logs,
        redis_publisher(broker.url, options={"max_queue": 15}) as publisher,
        in_background(lambda: _Stream(publisher, router).publish(1)) as end,
    ):
        wait_until(lambda: any(line["event"] == "paused" for line in logs), what="a pause")
        assert not end.done()
        broker.client.delete("full")
        end.result()
    assert publisher.attach(SOURCE) == position(10)


def test_check_tells_of_a_policy_without_a_limit(broker: Broker, router: BinlogRouter) -> None:
    app = celery_app(broker.url)
    codes = [each.code for each in check_broker(app, router.routes, durability="memory")]
    assert codes.count("on_full_without_limit") == 1
    limited = check_broker(app, router.routes, durability="memory", max_queue=10)
    assert "on_full_without_limit" not in {each.code for each in limited}


def test_status_tells_what_is_set_aside(broker: Broker, router: BinlogRouter) -> None:
    with redis_publisher(broker.url, options={"max_queue": 15}) as publisher:
        stream = _Stream(publisher, router)
        for _ in range(4):
            stream.publish(1)
            broker.client.delete("other")
    saved = read_saved_position(RedisConnection.of_broker(celery_app(broker.url)), "test")
    assert saved.set_aside == {"full": 20}
