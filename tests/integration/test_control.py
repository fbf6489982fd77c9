"""What a person tells a listener that runs: pause, resume, skip, reload."""

from __future__ import annotations

import base64
import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

from harness.waiting import wait_until
from tests.support.listening import wait_for_listener
from tests.support.operators import Operator

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Broker, Database

_ROUTES = """
from listener.router import BinlogRouter, EventType

def setup(schema="public"):
    router = BinlogRouter()
    router.register(schema, "roles", EventType.INSERT, "tests.one", queue="cdc_bulk", args=["id"])
    router.register(schema, "roles", EventType.INSERT, "tests.two", queue="cdc_cache", args=["id"])
    return router
"""
_ONE, _TWO = "cdc_bulk", "cdc_cache"


class Person(Operator):
    """An operator with a file of routes, a database and a broker."""

    def __init__(self, database: Database, broker: Broker, directory: Path) -> None:
        database.execute("CREATE TABLE roles (id int PRIMARY KEY, name text)")
        super().__init__(
            DATABASE_URL=database.url,
            CELERY_BROKER_URL=broker.url,
            CACHE_URL=broker.cache_url,
            CDC_NAME=database.name,
            CDC_ROUTES="routes_of_mine:setup",
            PYTHONPATH=str(directory),
        )
        self.database, self.broker = database, broker
        self.file = directory / "routes_of_mine.py"
        self.file.write_text(_ROUTES)
        self.last = 0

    def inserts(self, rows: int) -> None:
        first, self.last = self.last + 1, self.last + rows
        self.database.execute(f"INSERT INTO roles SELECT g, 'r' FROM generate_series({first}, {self.last}) g")

    def fired(self, queue: str) -> list[int]:
        """Return the ids of the rows whose tasks are in the queue, in its order."""
        bodies = (json.loads(text)["body"] for text in reversed(self.broker.client.lrange(queue, 0, -1)))
        return [json.loads(base64.b64decode(body))[0][0] for body in bodies]

    def sees(self, queue: str, last: int) -> None:
        """Wait until the queue has the tasks of the rows from 1 to `last`, each once, in order."""
        wait_until(lambda: len(self.fired(queue)) >= last, what=f"{last} tasks in {queue}", timeout=30)
        assert self.fired(queue) == list(range(1, last + 1))

    def passes(self) -> None:
        """Wait until the listener has published all that was committed."""

        def is_done() -> bool:
            position = self.broker.client.hget(f"cdc:{self.database.name}:checkpoint", "position")
            (end,) = self.database.fetch("SELECT pg_current_wal_insert_lsn()")[0]
            self.database.execute("CHECKPOINT")
            return position is not None and position.decode().split(":")[0] >= str(end)

        wait_until(is_done, what="all to be published", timeout=30)


@pytest.fixture
def person(database: Database, broker: Broker, tmp_path: Path) -> Person:
    return Person(database, broker, tmp_path)


@pytest.fixture
def listening(person: Person) -> Iterator[subprocess.Popen[str]]:
    with person.running() as process:
        wait_for_listener(person.database, timeout=30)
        yield process
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


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
        process.communicate(timeout=30)
    with person.running() as process:
        wait_for_listener(person.database, timeout=30)
        person.inserts(1)
        person.sees(_TWO, 503)
        assert len(person.fired(_ONE)) == 2
        status = person.asks("status")
        assert status["set_aside"] == {_ONE: 501}
        person.database.execute(
            "BEGIN; INSERT INTO roles SELECT g, 'r' FROM generate_series(504, 3000) g; COMMIT"
        )
        person.last = 3000
        _done(person.asks("resume", "tests.one"))
        person.inserts(10)
        person.sees(_ONE, 3010)
        person.sees(_TWO, 3010)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


@pytest.mark.usefixtures("listening")
def test_a_route_skips_what_was_committed_until_now_and_no_more(person: Person) -> None:
    _done(person.asks("pause", "tests.one"))
    person.inserts(5)
    person.sees(_TWO, 5)
    answer = _done(person.asks("skip", "tests.one", "--until", "now"))
    assert "5 that waited were dropped" in str(answer["result"])
    _done(person.asks("resume", "tests.one"))
    person.inserts(2)
    person.sees(_TWO, 7)
    assert person.fired(_ONE) == [6, 7]


@pytest.mark.usefixtures("listening")
def test_what_cannot_be_done_is_refused_with_a_reason(person: Person) -> None:
    answer = person.asks("pause", "tests.onne")
    assert not answer["done"]
    assert "Did you mean tests.one?" in str(answer["result"])
    assert answer["code"] == "unknown_route"
    done = person.types("resume", "tests.two")
    assert done.returncode == 1
    assert "tests.two is not paused" in done.stderr


def test_a_command_that_no_listener_does_is_withdrawn(person: Person) -> None:
    done = person.types("pause", "--wait", "0.5")
    assert done.returncode == 1
    assert "No listener did it within 0.5 seconds" in done.stderr
    assert not person.broker.client.exists(f"cdc:{person.database.name}:commands")


def test_new_routes_are_loaded_without_a_restart_and_broken_ones_are_refused(person: Person) -> None:
    with person.running("run", "--reload") as process:
        wait_for_listener(person.database, timeout=30)
        person.inserts(1)
        person.sees(_ONE, 1)
        person.file.write_text("import nothing_of_this_name\n")
        answer = person.asks("reload")
        assert not answer["done"]
        assert "nothing_of_this_name" in str(answer["result"])
        person.inserts(1)
        person.sees(_ONE, 2)
        with_third = _ROUTES.replace(
            "    return router",
            '    router.register(schema, "roles", EventType.INSERT, "tests.three", queue="cdc_notifications",'
            ' args=["id"])\n    return router',
        )
        person.file.write_text(with_third)
        _done(person.asks("reload"))
        for _ in range(4):  # while rows are written
            os.kill(process.pid, signal.SIGHUP)
            person.inserts(50)
        person.sees(_ONE, 202)
        person.inserts(1)
        wait_until(lambda: person.fired("cdc_notifications"), what="the new route", timeout=30)
        person.file.write_text(_ROUTES.replace("tests.two", "tests.changed"))  # nobody says so
        wait_until(
            lambda: (
                [each["result"] for each in person.asks("commands")["record"] if each["done"]][0:]
                and "changed file" in person.asks("commands")["record"][0]["who"]
            ),
            what="a reload because of the file",
            timeout=60,
        )
        wait_for_listener(person.database, timeout=30)
        person.inserts(1)
        person.sees(_ONE, 204)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        assert process.returncode == 0
