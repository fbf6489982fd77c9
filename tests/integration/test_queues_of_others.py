"""Queues of RabbitMQ that others have made, or that we may not make: taken as they are."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tempfile
import uuid
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from kombu import Exchange, Queue

from cdc_tasks.broker.rabbitmq.partitions import partition_for
from harness.waiting import wait_until
from harness.worker import Worker
from tests.integration.tasks.test_rabbitmq import sender_of
from tests.support.operators import Operator
from tests.support.publishing import change, fire, position, router_to
from tests.support.rabbitmq import QUORUM, drain, kombu_publisher, open_channel, row_ids
from tests.support.tasks.in_order import LOG

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.machine_servers import RabbitMQServer
    from tests.conftest import Broker, Database

_OURS = ("celery", "cdc_notifications", "cdc_cache", "cdc_bulk")


@pytest.fixture
def vhost(rabbitmq_server: RabbitMQServer) -> Iterator[str]:
    """A virtual host of the test's own, empty."""
    name = f"house-{uuid.uuid4().hex[:8]}"
    rabbitmq_server.control("add_vhost", name)
    rabbitmq_server.control("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
    yield name
    rabbitmq_server.control("delete_vhost", name)


def _url(server: RabbitMQServer, vhost: str, user: str = "guest") -> str:
    return f"amqp://{user}:{user}@127.0.0.1:{server.port}/{vhost}"


def _environment(database: Database, broker: Broker, url: str) -> dict[str, str]:
    return {
        "DATABASE_URL": database.url,
        "CELERY_BROKER_URL": url,
        "CACHE_URL": broker.cache_url,
        "CDC_SECRET_KEY": "rop8WLZLEDDZrTQZX5ohkSKhzjFRaCAcI5Fb7x0kH3I=",
        "CDC_TASK_MODULES": "tests.support.tasks.faulty",
    }


@contextmanager
def _worker_of_the_house(url: str, queue: str) -> Iterator[subprocess.Popen[bytes]]:
    """Celery as it comes, with the queue as it makes it: classic, on a direct exchange of the same name."""
    command = [
        sys.executable,
        "-m",
        "celery",
        "-b",
        url,
        "worker",
        "-P",
        "solo",
        "-Q",
        queue,
        "-n",
        "house@%h",
    ]
    elsewhere = tempfile.gettempdir()  # without the settings of the checkout
    with subprocess.Popen(
        command, cwd=elsewhere, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _types(server: RabbitMQServer, vhost: str) -> dict[str, str]:
    listed = server.control("list_queues", "-p", vhost, "name", "type").splitlines()[1:]
    return dict(line.split("\t") for line in listed)


def test_our_worker_takes_a_queue_of_the_house_as_it_is_and_the_house_goes_on(
    database: Database, broker: Broker, rabbitmq_server: RabbitMQServer, vhost: str
) -> None:
    url = _url(rabbitmq_server, vhost)
    with _worker_of_the_house(url, "celery"):
        wait_until(
            lambda: _types(rabbitmq_server, vhost).get("celery"), timeout=40, what="the queue of the house"
        )
    with Worker(_environment(database, broker, url)) as worker:
        assert _types(rabbitmq_server, vhost)["celery"] == "classic"
        assert _types(rabbitmq_server, vhost)["cdc_bulk"] == "quorum"
        with open_channel(rabbitmq_server, vhost) as channel:
            found = channel.queue_declare("celery", passive=True)
        assert found.consumer_count == 1
        operator = Operator(
            **_environment(database, broker, url), CDC_ROUTES="tests.support.routes.refused:to_celery"
        )
        findings = {each["what"]: each for each in operator.asks("check")["findings"]}
        assert findings["queue celery"]["state"] == "ok"
        assert worker.process.poll() is None
    with _worker_of_the_house(url, "celery") as house:
        wait_until(
            lambda: _consumers(rabbitmq_server, vhost) == 1, timeout=40, what="the worker of the house"
        )
        assert house.poll() is None


def _consumers(server: RabbitMQServer, vhost: str) -> int:
    with open_channel(server, vhost) as channel:
        return int(channel.queue_declare("celery", passive=True).consumer_count)


@pytest.fixture
def poor(rabbitmq_server: RabbitMQServer, vhost: str) -> Iterator[str]:
    """A user who may publish to the exchange of the tasks, and nothing else, in a house that has made its queues."""
    rabbitmq_server.control("add_user", "poor", "poor")
    rabbitmq_server.control("set_permissions", "-p", vhost, "poor", "^$", "^cdc_tasks$", "^$")
    with open_channel(rabbitmq_server, vhost) as channel:
        channel.exchange_declare("cdc_tasks", "topic", durable=True, auto_delete=False)
        for name in _OURS:
            channel.queue_declare(name, durable=True, auto_delete=False, arguments=QUORUM)
            channel.queue_bind(name, "cdc_tasks", name)
    yield "poor"
    rabbitmq_server.control("delete_user", "poor")


def test_a_listener_that_may_only_publish_works(
    broker: Broker, rabbitmq_server: RabbitMQServer, vhost: str, poor: str
) -> None:
    exchange = Exchange("cdc_tasks", type="topic")
    settings: dict[str, Any] = {
        "task_queues": [Queue("cdc_bulk", exchange, routing_key="cdc_bulk", queue_arguments=QUORUM)]
    }
    with kombu_publisher(_url(rabbitmq_server, vhost, poor), broker, "cdc_bulk", **settings) as publisher:
        publisher.publish(fire(router_to(), [change(1)]), checkpoint=position(1))
    assert row_ids(drain(rabbitmq_server, "cdc_bulk", vhost)) == [1]


def test_a_worker_with_the_least_rights_of_the_manual_runs_and_retries(
    database: Database, broker: Broker, rabbitmq_server: RabbitMQServer, vhost: str, poor: str
) -> None:
    manual = (Path(__file__).parents[2] / "docs/operating.md").read_text()
    (command,) = re.findall(r"rabbitmqctl (set_permissions -p helpdesk cdc_worker .*)", manual)
    words = shlex.split(command.replace("helpdesk", vhost).replace("cdc_worker", poor))
    rabbitmq_server.control(*words)
    url = _url(rabbitmq_server, vhost, poor)
    environment = _environment(database, broker, url)
    rich = {"CELERY_BROKER_URL": _url(rabbitmq_server, vhost)}
    with Worker(environment, mingle=True) as worker, sender_of(rich) as sender:
        sender.send_task("faulty.retries_out", queue="celery")
        wait_until(lambda: worker.events("task_gave_up"), timeout=40, what="the last try")
        (line,) = worker.events("keyed_queues_not_ours")  # once, and nothing else is refused
        assert line["queues"] == ["cdc_keyed", *(f"cdc_keyed_{number}" for number in range(8))]
        assert worker.log.count("ACCESS_REFUSED") == 1
        assert "NOT_FOUND" not in worker.log


def test_a_worker_runs_all_but_the_partition_that_it_may_not_read(
    database: Database, broker: Broker, rabbitmq_server: RabbitMQServer, vhost: str, poor: str
) -> None:
    """The partition exists, and is bound: only RabbitMQ's answer to the consumer tells."""
    keys = ["a", "b", "c", "d", "e", "f"]
    partitions = [f"cdc_keyed_{number}" for number in range(2)]
    assert {partition_for(key, partitions) for key in keys} == set(partitions)
    rabbitmq_server.control("set_permissions", "-p", vhost, poor, ".*", ".*", "^(?!cdc_keyed_1$).*")
    environment = {
        **_environment(database, broker, _url(rabbitmq_server, vhost, poor)),
        "CDC_TASK_MODULES": "tests.support.tasks.in_order",
        "CDC_KEY_PARTITIONS": "2",
    }
    with Worker(environment) as worker, sender_of(environment) as sender:
        (line,) = wait_until(
            lambda: worker.events("keyed_queues_not_ours"), timeout=20, what="the partition to be refused"
        )
        assert line["queues"] == ["cdc_keyed_1"]
        assert "ACCESS_REFUSED" in line["error"]
        for key in keys:
            queue = partition_for(key, partitions)
            sender.send_task("in_order.notes", [key, 1], queue=queue, headers={"cdc_key": key})
        sender.send_task("in_order.notes", ["none", 1], queue="cdc_bulk")
        runs = {f"ends {key} 1" for key in keys if partition_for(key, partitions) == "cdc_keyed_0"}
        wait_until(
            lambda: {each.decode() for each in broker.cache.lrange(LOG, 0, -1)} >= runs | {"ends none 1"},
            timeout=40,
            what="the tasks of the other queues",
        )
    number = sum(partition_for(key, partitions) == "cdc_keyed_1" for key in keys)
    assert len(drain(rabbitmq_server, "cdc_keyed_1", vhost)) == number  # they wait for another worker


def test_a_retry_comes_back_where_the_exchange_of_the_house_is_a_direct_one(
    database: Database, broker: Broker, rabbitmq_server: RabbitMQServer, vhost: str
) -> None:
    with open_channel(rabbitmq_server, vhost) as channel:
        channel.exchange_declare("cdc_tasks", "direct", durable=True, auto_delete=False)
        for name in _OURS:
            channel.queue_declare(name, durable=True, auto_delete=False, arguments=QUORUM)
            channel.queue_bind(name, "cdc_tasks", name)
    environment = _environment(database, broker, _url(rabbitmq_server, vhost))
    ours = partial(
        Celery, amqp="cdc_tasks.broker.queues:AMQP"
    )  # kombu's own transport refuses such an exchange
    with Worker(environment) as worker, sender_of(environment, ours) as sender:
        sender.send_task("faulty.retries_out", queue="celery")
        (line,) = wait_until(lambda: worker.events("task_gave_up"), timeout=40, what="the last try")
        assert line["tries"] == 3
        retries = [
            line for line in worker.log.splitlines() if "faulty.retries_out[" in line and "] retry: " in line
        ]
        assert len(retries) == 2  # once each, although there are two ways to the queue


def test_check_of_a_user_without_rights_is_no_traceback(
    database: Database, broker: Broker, rabbitmq_server: RabbitMQServer, vhost: str, poor: str
) -> None:
    database.execute("CREATE TABLE tickets (id int PRIMARY KEY)")
    environment = _environment(database, broker, _url(rabbitmq_server, vhost, poor))
    operator = Operator(**environment, CDC_ROUTES="tests.support.routes.refused:setup")
    done = operator.types("check", "--json")
    assert "Traceback" not in done.stderr
    findings = {each["what"]: each for each in operator.asks("check")["findings"]}
    assert findings["queue cdc_bulk"]["state"] == "ok"
    assert "the query is not permitted" in findings["workers"]["found"]
    _paste(rabbitmq_server, vhost, findings["workers"]["hint"])
    again = {each["what"]: each for each in operator.asks("check")["findings"]}
    assert again["workers"]["found"] == "none answers"


def _paste(server: RabbitMQServer, vhost: str, hint: str) -> None:
    """Run the command that a hint has, with its places filled in."""
    command = hint.partition("rabbitmqctl ")[2]
    for place, value in {"<vhost>": vhost, "<user>": "poor", "<exchange of the tasks>": "cdc_tasks"}.items():
        command = command.replace(place, value)
    server.control(*(word.strip("'") for word in command.split()))


def test_a_wrong_password_in_check_is_no_traceback(
    database: Database, broker: Broker, rabbitmq_server: RabbitMQServer, vhost: str
) -> None:
    environment = _environment(
        database, broker, f"amqp://guest:wrong@127.0.0.1:{rabbitmq_server.port}/{vhost}"
    )
    done = Operator(**environment, CDC_ROUTES="tests.support.routes.refused:setup").types("check", "--json")
    assert "Traceback" not in done.stderr
    assert "ACCESS_REFUSED" in done.stdout
