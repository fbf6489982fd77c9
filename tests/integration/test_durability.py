"""CDC_DURABILITY: nothing counts as published before the broker's disk or a replica has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import redis
from structlog.testing import capture_logs

from harness.embedded_servers import ValkeyServer
from harness.waiting import at_most, wait_until
from listener.core.publisher import BrokerError, StoppedError
from tests.support.publishing import (
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

    from harness.machine_servers import RedisServer
    from listener.publish.redis.publisher import RedisPublisher
    from tests.conftest import Broker


@pytest.fixture
def logging() -> Iterator[ValkeyServer]:
    """A broker with an append-only file, which it leaves to the kernel to write to the disk."""
    with ValkeyServer(append_only=True, arguments=["--appendfsync", "no"]) as server:
        yield server


def _publish(publisher: RedisPublisher, first: int, last: int) -> None:
    publisher.publish(fire(router_to(), changes(first, last)), checkpoint=position(last))


def test_fsync_waits_for_the_brokers_disk(logging: ValkeyServer) -> None:
    client = redis.Redis.from_url(logging.url)
    with redis_publisher(logging.url, durability="fsync") as publisher, capture_logs() as logs:
        with in_background(lambda: _publish(publisher, 1, 3)) as publishing:
            wait_until(lambda: waits(logs, "not on the broker's disk"), what="it to wait for the disk")
            assert not publishing.done()
            client.config_set("appendfsync", "always")
            publishing.result(at_most(20))
        _publish(publisher, 4, 6)
        logging.kill()
        logging.start()
    assert ids(client, "celery") == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_that_was_only_read_is_not_held_before_the_disk_has_it(logging: ValkeyServer) -> None:
    """As after a kill between the step and its durability: the database must keep its log for a while yet."""
    with redis_publisher(logging.url) as publisher:
        _publish(publisher, 1, 3)
    with redis_publisher(logging.url, durability="fsync") as publisher, capture_logs() as logs:
        assert publisher.flush() is None
        with in_background(lambda: publisher.publish([], checkpoint=position(3))) as publishing:
            wait_until(lambda: waits(logs, "not on the broker's disk"), what="it to wait for the disk")
            assert not publishing.done()
            redis.Redis.from_url(logging.url).config_set("appendfsync", "always")
            assert publishing.result(at_most(20)) == position(3)
    assert ids(redis.Redis.from_url(logging.url), "celery") == [1, 2, 3]


def test_a_wait_for_the_disk_can_be_stopped(logging: ValkeyServer) -> None:
    with (
        redis_publisher(logging.url, durability="fsync") as publisher,
        capture_logs() as logs,
        in_background(lambda: _publish(publisher, 1, 1)) as publishing,
    ):
        wait_until(lambda: waits(logs, "not on the broker's disk"), what="it to wait for the disk")
        publisher.stop()
        with pytest.raises(StoppedError):
            publishing.result(at_most(10))


def test_fsync_without_an_append_only_file_is_an_error_before_anything_is_published(broker: Broker) -> None:
    with (
        pytest.raises(BrokerError, match="CDC_DURABILITY=fsync") as raised,
        redis_publisher(broker.url, durability="fsync"),
    ):
        pass
    assert "redis-cli CONFIG SET appendonly yes" in (raised.value.hint or "")


def test_fsync_on_a_redis_that_is_too_old_is_an_error_that_says_which_is_not(
    redis_server: RedisServer,
) -> None:
    with (
        pytest.raises(BrokerError, match=r"CDC_DURABILITY=fsync.*unknown command") as raised,
        redis_publisher(redis_server.url, durability="fsync"),
    ):
        pass
    assert "Redis 7.2" in (raised.value.hint or "")


def test_replicated_waits_for_a_replica() -> None:
    with (
        ValkeyServer(arguments=["--repl-diskless-sync-delay", "0"]) as master,
        ValkeyServer() as replica,
        redis_publisher(master.url, durability="replicated") as publisher,
        capture_logs() as logs,
    ):
        copy = redis.Redis.from_url(replica.url)
        with in_background(lambda: _publish(publisher, 1, 3)) as publishing:
            wait_until(lambda: waits(logs, "No replica"), what="it to wait for a replica")
            assert not publishing.done()
            copy.replicaof("127.0.0.1", str(master.port))
            publishing.result(at_most(30))
        _publish(publisher, 4, 6)
        assert ids(copy, "celery") == [1, 2, 3, 4, 5, 6]  # at once: it is what was waited for


@pytest.mark.parametrize("durability", ["fsync", "replicated"])
def test_a_broker_that_is_a_replica_itself_is_waited_for(durability: str) -> None:
    """As after a failover: it may be the master again."""
    with (
        ValkeyServer(append_only=True) as server,
        ValkeyServer(arguments=["--replicaof", "127.0.0.1", str(server.port)]) as copy,
    ):
        client = redis.Redis.from_url(server.url)
        client.replicaof("127.0.0.1", "1")

        def open_and_publish() -> None:
            with redis_publisher(server.url, durability=durability) as publisher:
                _publish(publisher, 1, 1)

        with capture_logs() as logs, in_background(open_and_publish) as publishing:
            wait_until(lambda: waits(logs) or publishing.done(), what="it to wait")
            assert not publishing.done()
            client.replicaof("NO", "ONE")
            publishing.result(at_most(30))
        assert ids(client, "celery") == [1]
        assert copy.running
