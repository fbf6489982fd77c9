"""What a person tells a listener that runs: pause, resume, skip, reload."""

from __future__ import annotations

import json
import os
import signal
from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from amqp.exceptions import InternalError, NotFound

from harness.waiting import at_most, wait_until
from tests.support.listening import wait_for_listener
from tests.support.operators import Operator
from tests.support.publishing import messages
from tests.support.rabbitmq import open_channel

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from harness.machine_servers import RabbitMQServer
    from tests.conftest import Broker, Database

_ROUTES = """
from listener.router import BinlogRouter, EventType

def setup(schema="public"):
    router = BinlogRouter()
    router.register(schema, "roles", EventType.INSERT, "tests.one", queue="PREFIX_bulk", args=["id"])
    router.register(schema, "roles", EventType.INSERT, "tests.two", queue="PREFIX_cache", args=["id"])
    return router
"""
_ONE, _TWO = "bulk", "cache"


class Person(Operator):
    """An operator with a file of routes, a database and a broker."""

    def __init__(
        self,
        database: Database,
        broker: Broker,
        directory: Path,
        rabbitmq: RabbitMQServer | None = None,
    ) -> None:
        database.execute("CREATE TABLE roles (id int PRIMARY KEY, name text)")
        super().__init__(
            DATABASE_URL=database.url,
            CELERY_BROKER_URL=broker.url if rabbitmq is None else rabbitmq.url,
            CDC_QUEUE_PREFIX=f"{database.name}_",
            CACHE_URL=broker.cache_url,
            CDC_NAME=database.name,
            CDC_ROUTES="routes_of_mine:setup",
            PYTHONPATH=str(directory),
        )
        self.database, self.broker, self._rabbitmq = database, broker, rabbitmq
        self._taken: dict[str, list[int]] = defaultdict(list)
        self.file = directory / "routes_of_mine.py"
        self.writes(_ROUTES)
        self.last = 0

    def writes(self, routes: str) -> None:
        """Write the file of routes."""
        self.file.write_text(routes.replace("PREFIX", self.database.name))

    def inserts(self, rows: int) -> None:
        first, self.last = self.last + 1, self.last + rows
        self.database.execute(f"INSERT INTO roles SELECT g, 'r' FROM generate_series({first}, {self.last}) g")

    def fired(self, queue: str) -> list[int]:
        """Return the ids of the rows whose tasks are in the queue, in its order."""
        name = f"{self.database.name}_{queue}"
        if self._rabbitmq is not None:
            # Or it is not declared yet, or on a busy machine its leader is not elected yet.
            with suppress(NotFound, InternalError), open_channel(self._rabbitmq) as channel:
                while (message := channel.basic_get(name, no_ack=True)) is not None:
                    self._taken[queue].append(json.loads(message.body)[0][0])
            return self._taken[queue]
        return [each["body"][0][0] for each in messages(self.broker.client, name)]

    def sees(self, queue: str, last: int) -> None:
        """Wait until the queue has the tasks of the rows from 1 to `last`, each once, in order."""
        wait_until(lambda: len(self.fired(queue)) >= last, what=f"{last} tasks in {queue}", timeout=30)
        assert self.fired(queue) == list(range(1, last + 1))


@pytest.fixture(params=["redis", "rabbitmq"])
def person(request: pytest.FixtureRequest, database: Database, broker: Broker, tmp_path: Path) -> Person:
    """Someone whose tasks go to each of the brokers."""
    rabbitmq = request.getfixturevalue("rabbitmq_server") if request.param == "rabbitmq" else None
    return Person(database, broker, tmp_path, rabbitmq)


@pytest.fixture
def on_redis(database: Database, broker: Broker, tmp_path: Path) -> Person:
    return Person(database, broker, tmp_path)


@pytest.fixture
def listening(person: Person) -> Iterator[subprocess.Popen[str]]:
    with person.running() as process:
        wait_for_listener(person.database, timeout=30)
        yield process
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=at_most(30))


def _done(answer: dict[str, object]) -> dict[str, object]:
    assert answer["done"], answer
    return answer


@pytest.mark.usefixtures("listening")
def test_a_paused_stream_waits_in_the_log_and_goes_on_where_it_was(person: Person) -> None:
    person.inserts(3)
    person.sees(_ONE, 3)
    _done(person.asks("pause"))
    person.inserts(3)
    assert person.asks("commands")["in_force"]["all"]["who"]
    assert len(person.fired(_ONE)) == 3
    _done(person.asks("resume"))
    person.sees(_ONE, 6)
    person.sees(_TWO, 6)
    record = person.asks("commands")["record"]
    assert [each["command"] for each in record] == ["resume", "pause"]
    assert "nothing is paused" in record[0]["result"].lower()


def test_a_paused_route_keeps_its_tasks_in_order_over_a_restart_and_the_others_go_on(person: Person) -> None:
    with person.running() as process:
        wait_for_listener(person.database, timeout=30)
        person.inserts(2)
        person.sees(_ONE, 2)
        _done(person.asks("pause", "tests.one"))
        person.inserts(500)
        person.sees(_TWO, 502)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=at_most(30))
    with person.running() as process:
        wait_for_listener(person.database, timeout=30)
        person.inserts(1)
        person.sees(_TWO, 503)
        assert len(person.fired(_ONE)) == 2
        status = person.asks("status")
        assert status["set_aside"] == {f"{person.database.name}_{_ONE}": 501}
        person.database.execute(
            "BEGIN; INSERT INTO roles SELECT g, 'r' FROM generate_series(504, 3000) g; COMMIT"
        )
        person.last = 3000
        _done(person.asks("resume", "tests.one"))
        person.inserts(10)
        person.sees(_ONE, 3010)
        person.sees(_TWO, 3010)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=at_most(30))


@pytest.mark.usefixtures("listening")
def test_a_route_skips_what_was_committed_until_now_and_no_more(person: Person) -> None:
    _done(person.asks("pause", "tests.one"))
    person.inserts(5)
    person.sees(_TWO, 5)
    answer = _done(person.asks("skip", "tests.one", "--until", "now"))
    assert "5 set aside were dropped" in str(answer["result"])
    _done(person.asks("resume", "tests.one"))
    person.inserts(2)
    person.sees(_TWO, 7)
    assert person.fired(_ONE) == [6, 7]


def test_what_cannot_be_done_is_refused_with_a_reason(on_redis: Person) -> None:
    with on_redis.running():
        wait_for_listener(on_redis.database, timeout=30)
        answer = on_redis.asks("pause", "tests.onne")
        assert not answer["done"]
        assert "Did you mean tests.one?" in str(answer["result"])
        assert answer["code"] == "unknown_route"
        done = on_redis.types("resume", "tests.two")
        assert done.returncode == 1
        assert "tests.two is not paused" in done.stderr


def test_a_command_that_no_listener_does_is_withdrawn(on_redis: Person) -> None:
    done = on_redis.types("pause", "--wait", "0.5")
    assert done.returncode == 1
    assert "No listener accepted the command within 0.5 seconds" in done.stderr
    assert not on_redis.broker.client.exists(f"cdc:{on_redis.database.name}:commands")


def test_new_routes_are_loaded_without_a_restart_and_broken_ones_are_refused(on_redis: Person) -> None:
    with on_redis.running("run", "--reload") as process:
        wait_for_listener(on_redis.database, timeout=30)
        on_redis.inserts(1)
        on_redis.sees(_ONE, 1)
        on_redis.writes("import nothing_of_this_name\n")
        answer = on_redis.asks("reload")
        assert not answer["done"]
        assert "nothing_of_this_name" in str(answer["result"])
        on_redis.inserts(1)
        on_redis.sees(_ONE, 2)
        with_third = _ROUTES.replace(
            "    return router",
            '    router.register(schema, "roles", EventType.UPDATE, "tests.three", queue="PREFIX_notifications",'
            ' args=["id"])\n    return router',
        )
        on_redis.writes(with_third)
        _done(on_redis.asks("reload"))
        on_redis.database.execute(
            "UPDATE roles SET name = 's' WHERE id = 1"
        )  # at once: the new event is published
        wait_until(lambda: on_redis.fired("notifications"), what="the new route", timeout=30)
        for _ in range(4):  # while rows are written
            os.kill(process.pid, signal.SIGHUP)
            on_redis.inserts(50)
        on_redis.sees(_ONE, 202)
        on_redis.inserts(1)
        on_redis.sees(_ONE, 203)
        on_redis.writes(_ROUTES.replace("tests.two", "tests.changed"))  # nobody says so
        wait_until(
            lambda: (
                [each["result"] for each in on_redis.asks("commands")["record"] if each["done"]][0:]
                and "changed file" in on_redis.asks("commands")["record"][0]["who"]
            ),
            what="a reload because of the file",
            timeout=60,
        )
        wait_for_listener(on_redis.database, timeout=30)
        on_redis.inserts(1)
        on_redis.sees(_ONE, 204)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=at_most(30))
        assert process.returncode == 0
