"""A virtual host of RabbitMQ that we share with another team's Celery: both work, whichever starts first."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import uuid
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cdc_tasks.broker.rabbitmq.queues import existing_queue
from harness.waiting import wait_until
from harness.worker import Worker
from tests.support.listening import wait_for_listener
from tests.support.operators import Operator
from tests.support.rabbitmq import open_channel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.machine_servers import RabbitMQServer
    from tests.conftest import Broker, Database

_CHECKOUT = Path(__file__).resolve().parents[2]
_ROUTES = "tests.support.routes.beside_a_house"

# What Celery itself makes, whichever application starts: events, remote control, and waits.
_CELERYS = re.compile(
    r"celeryev(\..*)?|.*celery\.pidbox|celery_delayed_(\d+|delivery)|amq\..*|"  # and RabbitMQ's own
)


class _Shared:
    """The virtual host, and who works on it."""

    def __init__(self, database: Database, broker: Broker, server: RabbitMQServer, name: str) -> None:
        self.database, self.broker, self.server, self.name = database, broker, server, name
        self.environment = {
            "DATABASE_URL": database.url,
            "CELERY_BROKER_URL": f"amqp://guest:guest@127.0.0.1:{server.port}/{name}",
            "CACHE_URL": broker.cache_url,
            "CDC_NAME": database.name,
        }
        database.execute("CREATE TABLE roles (id int PRIMARY KEY, name text)")

    @contextmanager
    def house(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run a worker as Celery comes."""
        with tempfile.TemporaryFile() as log:
            command = [
                sys.executable,
                "-m",
                "celery",
                "-A",
                "tests.support.tasks.house",
                "worker",
                "-c1",
                "-n",
                "h@%h",
            ]
            process = subprocess.Popen(
                command, cwd=_CHECKOUT, env={**os.environ, **self.environment}, stdout=log, stderr=log
            )
            try:
                wait_until(
                    lambda: process.poll() is not None or self.has("celery", consumers=1),
                    timeout=40,
                    what="the house's worker",
                )
                assert process.poll() is None
                yield process
            finally:
                process.kill()
                process.wait()

    @contextmanager
    def ours(self) -> Iterator[Worker]:
        with Worker(self.environment, mingle=True) as worker:
            yield worker

    @contextmanager
    def listener(self, routes: str = "setup") -> Iterator[Operator]:
        """Run one, until it has sent the tasks of a first row."""
        operator = Operator(**self.environment, CDC_ROUTES=f"{_ROUTES}:{routes}")
        with operator.running():
            wait_for_listener(self.database, timeout=30)
            self.insert()
            wait_until(lambda: self.has("cdc_cache"), timeout=30, what="the first task's queue")
            yield operator

    def insert(self) -> None:
        self.database.execute("INSERT INTO roles SELECT count(*) + 1, 'role' FROM roles")

    def done_by_the_house(self) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = self.broker.cache.hgetall("house done")
        return found

    def has(self, queue: str, *, consumers: int = 0) -> bool:
        with open_channel(self.server, self.name) as channel:
            found = existing_queue(channel.connection, queue)
            return found is not None and found.consumer_count >= consumers

    def types(self) -> dict[str, str]:
        return self.listed("list_queues", "name", "type")

    def listed(self, command: str, *columns: str) -> dict[str, str]:
        lines = self.server.control(command, "-p", self.name, *columns).splitlines()[1:]
        return dict(line.split("\t", 1) for line in lines)

    def names(self) -> set[str]:
        """Return the queues and exchanges that are neither RabbitMQ's nor Celery's for itself."""
        every = self.types().keys() | self.listed("list_exchanges", "name", "type").keys()
        return {name for name in every if not _CELERYS.fullmatch(name)}


@pytest.fixture
def shared(database: Database, broker: Broker, rabbitmq_server: RabbitMQServer) -> Iterator[_Shared]:
    name = f"shared-{uuid.uuid4().hex[:8]}"
    rabbitmq_server.control("add_vhost", name)
    rabbitmq_server.control("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
    yield _Shared(database, broker, rabbitmq_server, name)
    rabbitmq_server.control("delete_vhost", name)


@pytest.mark.parametrize(
    "order", [("house", "listener", "ours"), ("listener", "ours", "house"), ("ours", "listener", "house")]
)
def test_whoever_comes_first_both_workers_do_their_tasks(shared: _Shared, order: tuple[str, ...]) -> None:
    with ExitStack() as stack:
        started = {name: stack.enter_context(getattr(shared, name)()) for name in order}
        shared.insert()
        wait_until(lambda: len(shared.done_by_the_house()) == 2, timeout=40, what="the house's tasks")
        wait_until(_refreshed_twice(started["ours"]), timeout=40, what="our tasks")
        assert started["house"].poll() is None
        assert not started["ours"].events("task_gave_up")
        assert not started["ours"].events("foreign_worker_takes_our_tasks")
        problems = [
            each
            for each in started["listener"].asks("check")["findings"]
            if each["what"].startswith("worker h@")
        ]
        assert not problems
    assert set(shared.done_by_the_house().values()) == {b"1"}
    assert shared.types()["celery"] == "classic"
    assert shared.types()["cdc_notifications"] == "quorum"


def _refreshed_twice(worker: Worker) -> Callable[[], bool]:
    return lambda: len(worker.events("master_cache_refreshed")) >= 2


def test_what_we_make_on_a_shared_vhost_has_names_of_our_own(shared: _Shared) -> None:
    with shared.ours() as worker, shared.listener("ours"):
        wait_until(lambda: worker.events("master_cache_refreshed"), timeout=40, what="our task")
        found = shared.names()
        assert {re.sub("@.*", "@", name) for name in found} == {
            "cdc_tasks",
            "cdc_notifications",
            "cdc_cache",
            "cdc_bulk",
            "cdc_keyed",
            *(f"cdc_keyed_{number}" for number in range(8)),
            "cdc_health.celery@",
        }


def test_celerys_default_queue_is_made_as_celery_makes_it(shared: _Shared) -> None:
    with shared.listener():
        wait_until(lambda: shared.has("celery"), timeout=30, what="the queue")
    bindings = shared.server.control(
        "list_bindings", "-p", shared.name, "source_name", "destination_name", "routing_key"
    ).splitlines()
    assert "celery\tcelery\tcelery" in bindings
    with open_channel(shared.server, shared.name) as channel:  # as Celery does: 406 where a word differs
        channel.exchange_declare("celery", "direct", durable=True, auto_delete=False)
        channel.queue_declare("celery", durable=True, exclusive=False, auto_delete=False, arguments={})
