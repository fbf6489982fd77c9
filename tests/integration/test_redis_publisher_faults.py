"""A broker that fails in the middle of a batch: nothing is lost or doubled, and the listener goes on by itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from harness.embedded_servers import ValkeyServer
from harness.waiting import at_most, wait_until
from listener.core.publisher import CheckpointMovedError, StoppedError
from tests.support.proxy import Fault, Proxy
from tests.support.publishing import (
    SOURCE,
    change,
    changes,
    fire,
    ids,
    in_background,
    position,
    redis_publisher,
    router_to,
    waits,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

    from listener.publish.redis.publisher import RedisPublisher
    from tests.conftest import Broker

_IMPATIENT = {"socket_timeout": 0.5, "socket_connect_timeout": 0.5}


@pytest.fixture
def proxy(any_broker: Broker) -> Iterator[Proxy]:
    with Proxy(any_broker.server.port) as running:
        yield running


def _url(proxy: Proxy) -> str:
    return f"redis://127.0.0.1:{proxy.port}/0"


def _publish(publisher: RedisPublisher, first: int, last: int) -> None:
    """Publish as the listener does: it goes on while the broker's answer is on its way."""
    for number in range(first, last + 1):
        publisher.publish(fire(router_to(), [change(number)]), checkpoint=position(number), pipelined=True)
    assert publisher.flush() == position(last)


def test_a_broker_that_loses_its_data_is_noticed_although_there_is_nothing_to_publish(
    any_broker: Broker,
) -> None:
    """Without that, its tasks would stay lost until the next write to the database."""

    def is_noticed() -> bool:
        try:
            publisher.publish([], checkpoint=position(1))
        except CheckpointMovedError as error:
            return "is gone" in error.message
        return False

    with redis_publisher(any_broker.url) as publisher:
        _publish(publisher, 1, 1)
        assert not is_noticed()
        any_broker.client.flushall()
        wait_until(is_noticed, what="the loss to be noticed")


@pytest.mark.parametrize(
    "fault", [Fault.LOSE_REQUEST, Fault.LOSE_ANSWER, Fault.HOLD_ANSWER, Fault.HOLD_REQUEST]
)
@pytest.mark.parametrize("at", [b"MULTI", b"WATCH"])
def test_a_lost_answer_loses_and_doubles_nothing(
    fault: Fault, at: bytes, proxy: Proxy, any_broker: Broker
) -> None:
    with redis_publisher(_url(proxy), broker_transport_options=_IMPATIENT) as publisher:
        _publish(publisher, 1, 1)
        proxy.fail(fault, at=at)
        _publish(publisher, 2, 3)
        assert proxy.faults == 1
    assert ids(any_broker.client, "celery") == [1, 2, 3]


def test_an_answer_that_is_lost_again_and_again_doubles_nothing(proxy: Proxy, any_broker: Broker) -> None:
    with redis_publisher(_url(proxy)) as publisher:
        for number in range(1, 6):
            proxy.fail(Fault.LOSE_ANSWER, at=b"MULTI")
            proxy.fail(Fault.LOSE_ANSWER, at=b"WATCH")  # while it reads back whether the step was done
            _publish(publisher, number, number)
            assert proxy.faults == 2 * number
    assert ids(any_broker.client, "celery") == [1, 2, 3, 4, 5]


def test_a_write_of_a_former_connection_that_comes_late_is_not_done(proxy: Proxy, any_broker: Broker) -> None:
    with redis_publisher(_url(proxy)) as publisher:
        _publish(publisher, 1, 1)
        proxy.fail(Fault.DELAY_REQUEST, at=b"MULTI")
        _publish(publisher, 2, 2)
        proxy.release()
        _publish(publisher, 3, 3)
    assert ids(any_broker.client, "celery") == [1, 2, 3]


def test_connections_that_are_cut_at_any_moment_lose_and_double_nothing(
    proxy: Proxy, any_broker: Broker
) -> None:
    with (
        redis_publisher(_url(proxy), broker_transport_options=_IMPATIENT) as publisher,
        in_background(lambda: _publish(publisher, 1, 500)) as publishing,
    ):
        while not publishing.done():
            before = any_broker.client.llen("celery")
            proxy.cut()
            wait_until(
                lambda before=before: publishing.done() or any_broker.client.llen("celery") > before + 20,
                what="some more changes",
            )
        publishing.result()
    assert ids(any_broker.client, "celery") == list(range(1, 501))


def test_a_full_broker_is_waited_for(any_broker: Broker) -> None:
    with redis_publisher(any_broker.url) as publisher, capture_logs() as logs:
        _publish(publisher, 1, 1)
        any_broker.client.config_set("maxmemory", 1)
        try:
            with in_background(lambda: _publish(publisher, 2, 2)) as publishing:
                wait_until(lambda: waits(logs, "maxmemory"), what="it to wait for memory")
                assert not publishing.done()
                any_broker.client.config_set("maxmemory", 0)
        finally:
            any_broker.client.config_set("maxmemory", 0)
    assert ids(any_broker.client, "celery") == [1, 2]
    assert logs[-1]["event"] == "back"


def test_a_broker_that_fills_up_in_the_middle_of_a_batch_takes_all_of_it_or_nothing(
    any_broker: Broker,
) -> None:
    """A plain pipeline would have left the part that still found room."""
    any_broker.client.config_set("maxmemory", any_broker.client.info("memory")["used_memory"] + 2**20)
    try:
        with redis_publisher(any_broker.url) as publisher, capture_logs() as logs:
            calls = fire(router_to(), changes(1, 2000, text="x" * 1000))
            with in_background(lambda: publisher.publish(calls, checkpoint=position(2000))) as publishing:
                wait_until(lambda: waits(logs, "maxmemory") or publishing.done(), what="it to wait or to end")
                assert any_broker.client.llen("celery") in {0, 2000}
                any_broker.client.config_set("maxmemory", 0)
    finally:
        any_broker.client.config_set("maxmemory", 0)
    assert ids(any_broker.client, "celery") == list(range(1, 2001))


def test_a_broker_that_became_a_replica_is_waited_for(any_broker: Broker) -> None:
    with redis_publisher(any_broker.url) as publisher, capture_logs() as logs:
        _publish(publisher, 1, 1)
        any_broker.client.replicaof("127.0.0.1", "1")
        try:
            with in_background(lambda: _publish(publisher, 2, 2)) as publishing:
                wait_until(lambda: waits(logs, "read only"), what="it to wait for a master")
                assert not publishing.done()
                any_broker.client.replicaof("NO", "ONE")
        finally:
            any_broker.client.replicaof("NO", "ONE")
    assert ids(any_broker.client, "celery") == [1, 2]


def test_a_broker_that_is_killed_and_restarted_with_its_log_has_every_change_once() -> None:
    with ValkeyServer(append_only=True) as server, redis_publisher(server.url) as publisher:
        client = _client(server)
        with in_background(lambda: _publish(publisher, 1, 1000)) as publishing:
            for _round in range(4):
                before = client.llen("celery")
                wait_until(lambda before=before: client.llen("celery") > before + 100, what="some changes")
                server.kill()
                server.start()
            publishing.result(at_most(60))
        assert ids(client, "celery") == list(range(1, 1001))


def test_a_broker_that_still_loads_its_data_is_waited_for() -> None:
    slow = ("--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")
    with ValkeyServer(append_only=True, arguments=slow) as server, redis_publisher(server.url) as publisher:
        client = _client(server)
        _publish(publisher, 1, 1)
        client.mset({f"key{number}": "value" for number in range(1500)})
        client.bgrewriteaof()
        wait_until(lambda: not client.info("persistence")["aof_rewrite_in_progress"], what="the rewrite")
        server.stop()
        # `start` returns when all is loaded, and has to be called by the thread that outlives the server.
        with ThreadPoolExecutor(1) as pool, capture_logs() as logs:
            pool.submit(_publish, publisher, 2, 2)
            server.start()
        assert waits(logs, "loading the dataset")
        assert ids(client, "celery") == [1, 2]


def test_a_broker_that_comes_back_without_its_data_is_noticed() -> None:
    with ValkeyServer() as server, redis_publisher(server.url) as publisher:
        _publish(publisher, 1, 1)
        server.restart(keep_data=False)
        with pytest.raises(CheckpointMovedError):
            _publish(publisher, 2, 2)
        assert publisher.attach(SOURCE) is None
        _publish(publisher, 1, 2)
        assert ids(_client(server), "celery") == [1, 2]


def test_a_broker_that_comes_back_with_an_old_copy_of_its_data_is_noticed_and_said() -> None:
    with ValkeyServer() as server, redis_publisher(server.url) as publisher, capture_logs() as logs:
        _publish(publisher, 1, 2)
        _client(server).save()
        _publish(publisher, 3, 4)
        server.kill()
        server.start()
        with pytest.raises(CheckpointMovedError):
            _publish(publisher, 5, 5)
        (said,) = (line for line in logs if line["event"] == "broker_lost_data")
        assert f"went back to {position(2)}; this listener left it at {position(4)}" in said["reason"]
        assert publisher.attach(SOURCE) == position(2)
        _publish(publisher, 3, 5)
        assert ids(_client(server), "celery") == [1, 2, 3, 4, 5]


def test_another_listener_that_took_over_is_no_loss(any_broker: Broker) -> None:
    with (
        redis_publisher(any_broker.url) as ours,
        redis_publisher(any_broker.url) as others,
        capture_logs() as logs,
    ):
        _publish(others, 1, 1)
        with pytest.raises(CheckpointMovedError):
            _publish(ours, 1, 1)
    assert not [line for line in logs if line["event"] == "broker_lost_data"]


def test_a_broker_that_is_emptied_under_us_is_noticed(any_broker: Broker) -> None:
    with redis_publisher(any_broker.url) as publisher:
        _publish(publisher, 1, 1)
        any_broker.client.flushall()
        with pytest.raises(CheckpointMovedError):
            _publish(publisher, 2, 2)
    assert not any_broker.client.exists("celery")


def test_stopping_while_the_broker_is_away_ends_the_wait(proxy: Proxy, any_broker: Broker) -> None:
    with redis_publisher(_url(proxy)) as publisher, capture_logs() as logs:
        proxy.refuse()
        with in_background(lambda: _publish(publisher, 1, 1)) as publishing:
            wait_until(lambda: waits(logs), what="it to wait")
            publisher.stop()
            with pytest.raises(StoppedError):
                publishing.result(at_most(10))
    assert not any_broker.client.exists("celery")


def test_a_batch_in_hand_is_still_published_after_stop(broker: Broker) -> None:
    with redis_publisher(broker.url) as publisher:
        publisher.stop()
        _publish(publisher, 1, 1)
    assert ids(broker.client, "celery") == [1]


def test_one_cut_is_no_news(proxy: Proxy) -> None:
    with redis_publisher(_url(proxy)) as publisher, capture_logs() as logs:
        _publish(publisher, 1, 1)
        proxy.cut()
        _publish(publisher, 2, 2)
    assert not logs


def _client(server: ValkeyServer) -> redis.Redis:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return redis.Redis.from_url(server.url, retry=Retry(NoBackoff(), 3))
