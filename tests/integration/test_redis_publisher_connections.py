"""Every way in which Celery reaches Redis, and the errors if one does not work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis

from harness.embedded_servers import ValkeyServer
from harness.machine_servers import RedisServer, SentinelServer
from harness.server_process import free_port
from harness.waiting import wait_until
from listener.core.publisher import BrokerError
from tests.support.certificates import write_certificates
from tests.support.publishing import change, fire, ids, position, redis_publisher, router_to

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Broker


def _publish_one(url: str, number: int = 1, **settings: object) -> None:
    with redis_publisher(url, **settings) as publisher:
        publisher.publish(fire(router_to(), [change(number)]), checkpoint=position(number))


@pytest.fixture(scope="module")
def guarded() -> Iterator[ValkeyServer]:
    with ValkeyServer(password="it's@secret/%") as server:
        yield server


@pytest.fixture
def user(broker: Broker) -> Iterator[str]:
    broker.client.acl_setuser(
        "limited", enabled=True, passwords=["+secret"], keys=["*"], categories=["+@read"]
    )
    yield f"redis://limited:secret@127.0.0.1:{broker.server.port}/0"
    broker.client.acl_deluser("limited")


def test_a_password_with_every_kind_of_character(guarded: ValkeyServer) -> None:
    _publish_one(guarded.url)
    assert ids(redis.Redis.from_url(guarded.url), "celery") == [1]


@pytest.mark.parametrize("login", ["", ":wrong@", "nobody:wrong@"])
def test_a_wrong_password_is_an_error_with_the_variable_to_correct(guarded: ValkeyServer, login: str) -> None:
    with pytest.raises(BrokerError) as raised:
        _publish_one(f"redis://{login}127.0.0.1:{guarded.port}/0")
    assert "CELERY_BROKER_URL" in (raised.value.hint or "")
    assert "wrong" not in str(raised.value)


def test_a_user_that_may_not_write_is_an_error_with_the_command_that_allows_it(user: str) -> None:
    with pytest.raises(BrokerError, match="no permissions") as raised:
        _publish_one(user)
    assert "ACL SETUSER" in (raised.value.hint or "")


def test_the_commands_that_the_error_allows_are_enough(broker: Broker, user: str) -> None:
    categories = ["+@read", "+@write", "+@transaction", "+@connection"]
    broker.client.acl_setuser("limited", enabled=True, keys=["*"], categories=categories)
    _publish_one(user)
    assert ids(broker.client, "celery") == [1]


@pytest.mark.parametrize("database", ["99", "name"])
def test_a_database_that_is_not_there_is_an_error(broker: Broker, database: str) -> None:
    with pytest.raises(BrokerError):
        _publish_one(f"redis://127.0.0.1:{broker.server.port}/{database}")


def test_a_unix_socket() -> None:
    path = f"/tmp/cdc-{os.getpid()}.sock"  # the longest path of a socket is 107 characters
    with ValkeyServer(arguments=["--unixsocket", path]) as server:
        _publish_one(f"redis+socket://{path}?virtual_host=3")
        assert ids(redis.Redis.from_url(server.url_of(3)), "celery") == [1]


def test_tls_with_a_certificate_of_an_authority_of_ones_own(tmp_path: Path) -> None:
    write_certificates(tmp_path, host="localhost")
    other = tmp_path / "other"
    other.mkdir()
    write_certificates(other, host="localhost")
    port = free_port()
    arguments = ["--tls-port", str(port), "--tls-auth-clients", "no"]
    for option, file in (("cert", "server.crt"), ("key", "server.key"), ("ca-cert", "ca.crt")):
        arguments += [f"--tls-{option}-file", str(tmp_path / file)]
    with RedisServer(arguments=arguments) as server:
        url = f"rediss://localhost:{port}/0?ssl_cert_reqs=required&ssl_ca_certs="
        _publish_one(f"{url}{tmp_path / 'ca.crt'}")
        assert ids(redis.Redis.from_url(server.url), "celery") == [1]
        with pytest.raises(BrokerError, match="certificate") as raised:
            _publish_one(f"{url}{other / 'ca.crt'}")
        assert "ssl_ca_certs" in (raised.value.hint or "")
        with pytest.raises(BrokerError, match="certificate"):
            _publish_one(
                f"rediss://127.0.0.1:{port}/0?ssl_cert_reqs=required&ssl_ca_certs={tmp_path / 'ca.crt'}"
            )


def test_sentinel_and_its_failover() -> None:
    with (
        ValkeyServer() as master,
        ValkeyServer(arguments=["--replicaof", "127.0.0.1", str(master.port)]) as replica,
        SentinelServer(master.port) as sentinel,
    ):
        options = {"master_name": "mymaster"}
        promoted = redis.Redis.from_url(replica.url)
        with redis_publisher(sentinel.url, broker_transport_options=options) as publisher:
            publisher.publish(fire(router_to(), [change(1)]), checkpoint=position(1))
            wait_until(lambda: promoted.llen("celery") == 1, what="the replica to have the change")
            sentinel.wait_for_replica()
            master.kill()
            publisher.publish(fire(router_to(), [change(2)]), checkpoint=position(2))
        assert promoted.info("replication")["role"] == "master"
        assert ids(promoted, "celery") == [1, 2]


def test_sentinel_without_the_name_of_a_master_is_an_error() -> None:
    with pytest.raises(BrokerError, match="master_name"):
        _publish_one("sentinel://127.0.0.1:1/0")
