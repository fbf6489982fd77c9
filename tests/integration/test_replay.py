"""Changes of the journal or of the binlog fire their routes once more, in order, each once, beside the stream."""

from __future__ import annotations

import json
import signal
from collections import Counter
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import redis
from amqp.exceptions import InternalError, NotFound

from harness.embedded_servers import ValkeyServer
from harness.given_mysql import WITHOUT_GTIDS, MySQLServer
from harness.waiting import at_most, wait_until
from tests.conftest import Broker
from tests.support.listening import wait_for_listener
from tests.support.mysql.source import MySQLDatabase
from tests.support.operators import Operator
from tests.support.publishing import messages
from tests.support.rabbitmq import open_channel

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from harness.machine_servers import RabbitMQServer
    from tests.conftest import Database

_ROUTES = """
from listener.router import BinlogRouter, EventType

CHANGES = [EventType.INSERT, EventType.UPDATE, EventType.DELETE]

def setup(schema="public"):
    router = BinlogRouter()
    router.register(schema, "items", CHANGES, "tests.bill", queue="PREFIX_bulk", columns=["id", "v"])
    router.register(schema, "items", CHANGES, "tests.keyed", queue="PREFIX_cache", key="id",
                    when=lambda change: change.row["id"] <= 2)
    return router
"""


class Person(Operator):
    """An operator with a table, routes, a broker, and a journal."""

    def __init__(
        self,
        database: Database | MySQLDatabase,
        broker: Broker,
        directory: Path,
        rabbitmq: RabbitMQServer | None = None,
    ) -> None:
        database.execute("CREATE TABLE items (id int PRIMARY KEY, v int)")
        super().__init__(
            DATABASE_URL=database.url,
            CELERY_BROKER_URL=broker.url if rabbitmq is None else rabbitmq.url,
            CDC_QUEUE_PREFIX=f"{database.name}_",
            CACHE_URL=broker.cache_url,
            CDC_NAME=database.name,
            CDC_ROUTES="routes_of_mine:setup",
            CDC_JOURNAL=str(directory / "journal"),
            PYTHONPATH=str(directory),
        )
        self.database, self.broker, self._rabbitmq = database, broker, rabbitmq
        self._taken: list[dict[str, Any]] = []
        (directory / "routes_of_mine.py").write_text(_ROUTES.replace("PREFIX", database.name))

    def sent(self) -> list[dict[str, Any]]:
        """Return the messages of tests.bill, in the order of their queue."""
        queue = f"{self.database.name}_bulk"
        if self._rabbitmq is None:
            return messages(self.broker.client, queue)
        # Or it is not declared yet, or does not run yet.
        with suppress(NotFound, InternalError), open_channel(self._rabbitmq) as channel:
            while (message := channel.basic_get(queue, no_ack=True)) is not None:
                self._taken.append({"headers": message.headers, "body": json.loads(message.body)})
        return list(self._taken)

    def count(self) -> int:
        if self._rabbitmq is not None:
            return len(self.sent())
        return int(self.broker.client.llen(f"{self.database.name}_bulk"))

    def waits_for(self, tasks: int) -> list[dict[str, Any]]:
        wait_until(lambda: self.count() >= tasks, what=f"{tasks} tasks", timeout=60)
        return self.sent()

    def inserts(self, first: int, last: int) -> None:
        values = ", ".join(f"({number}, 0)" for number in range(first, last + 1))
        self.database.execute(f"INSERT INTO items VALUES {values}")

    def replays(self, *arguments: str) -> str:
        """Give a replay, and return its id when it is done."""
        done = self.types("replay", *arguments, "--watch")
        assert done.returncode == 0, done.stderr
        return done.stdout.split()[1]


def _ends(process: subprocess.Popen[str]) -> str:
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=at_most(60))
    assert process.returncode == 0, log
    return log


@pytest.fixture(params=["postgresql", "postgresql on rabbitmq", "wal2json", "mariadb", "mysql"])
def person(request: pytest.FixtureRequest, broker: Broker, tmp_path: Path) -> Person:
    """Someone with each of the databases, and each of the brokers."""
    kind, _, on_rabbitmq = str(request.param).partition(" on ")
    fixture = {"postgresql": "database", "wal2json": "debian_database"}.get(kind, f"{kind}_database")
    rabbitmq = request.getfixturevalue("rabbitmq_server") if on_rabbitmq else None
    found = Person(request.getfixturevalue(fixture), broker, tmp_path, rabbitmq)
    if kind == "wal2json":
        found.environment["CDC_PLUGIN"] = kind
    return found


def _what(message: dict[str, Any]) -> tuple[Any, ...]:
    change = message["body"][0][0]
    return change["event"], (change["after"] or change["before"])["id"], (change["after"] or {}).get("v")


def test_changes_of_a_time_a_row_and_a_route_are_fired_again(person: Person) -> None:
    with person.running() as process:
        wait_for_listener(person.database, timeout=60)
        person.inserts(1, 20)
        person.waits_for(20)
        since = _next_second()
        person.database.execute("UPDATE items SET v = 1 WHERE id <= 10")
        person.database.execute("UPDATE items SET v = 2 WHERE id = 7")
        person.database.execute("DELETE FROM items WHERE id = 7")
        before = person.waits_for(32)
        first = before[20:]

        # What happened to a row, and how many would it be?
        found = person.asks("journal", "items", "--id", "7")
        assert [each["event"] for each in found] == ["insert", "update", "update", "delete"]
        plan = person.asks("replay", "--since", since, "--all-routes", "--dry-run")
        assert plan == {
            "changes": 12,
            "tasks": {"tests.bill": 12, "tests.keyed": 2},
            "parked": 0,
            "gaps": [],
            "source": "journal",
        }
        assert len(person.sent()) == 32

        # With the ids that they had, and in the order that they had.
        name = person.replays("--since", since, "--task", "tests.bill")
        again = person.waits_for(44)[32:]
        assert [each["headers"]["id"] for each in again] == [each["headers"]["id"] for each in first]
        assert list(map(_what, again)) == list(map(_what, first))
        assert [each["body"] for each in again] == [each["body"] for each in first]
        assert {each["headers"]["cdc_replay"] for each in again} == {name}
        assert not any("cdc_replay" in each["headers"] for each in before)

        # With new ids, of one row, while others write.
        person.inserts(100, 110)
        person.replays("--since", since, "--task", "tests.bill", "--id", "7", "--table", "items", "--new-ids")
        more = [each for each in person.waits_for(58)[44:] if "cdc_replay" in each["headers"]]
        assert [_what(each)[:2] for each in more] == [("update", 7), ("update", 7), ("delete", 7)]
        assert not {each["headers"]["id"] for each in more} & {
            each["headers"]["id"] for each in person.sent()[:44]
        }
        log = _ends(process)
    assert "replay_done" in log
    assert "journal_gap" not in log


def _next_second() -> str:
    """Wait for a second to begin, and return it: MariaDB's log has whole seconds."""
    start = datetime.now(UTC)
    begun = wait_until(lambda: (now := datetime.now(UTC).replace(microsecond=0)) > start and now, what="it")
    return begun.isoformat()


@pytest.fixture(params=["mariadb", "mysql", "mysql without GTIDs"])
def without_journal(request: pytest.FixtureRequest, broker: Broker, tmp_path: Path) -> Iterator[Person]:
    """Someone who has only the server's own log."""
    with ExitStack() as stack:
        if request.param == "mysql without GTIDs":
            server = stack.enter_context(MySQLServer(arguments=WITHOUT_GTIDS))
            server.create_database("alone")
            database = MySQLDatabase(name="alone", server=server)
        else:
            database = request.getfixturevalue(f"{request.param}_database")
        found = Person(database, broker, tmp_path)
        del found.environment["CDC_JOURNAL"]
        yield found


def test_the_binlog_is_fired_again_without_a_journal(without_journal: Person) -> None:
    person, database = without_journal, without_journal.database
    with person.running() as process:
        wait_for_listener(database, timeout=60)
        person.inserts(1, 20)
        person.waits_for(20)
        database.execute("FLUSH BINARY LOGS")
        since = _next_second()
        person.inserts(21, 1500)  # more than a part, in one transaction
        database.execute(
            "UPDATE items SET v = 1 WHERE id <= 3",
            "ALTER TABLE items ADD COLUMN w varchar(9) DEFAULT 'new' FIRST",
            "FLUSH BINARY LOGS",
            "UPDATE items SET v = 2 WHERE id = 2",
            "DELETE FROM items WHERE id = 2",
        )
        first = person.waits_for(1505)[20:]
        until = _next_second()
        person.database.execute("UPDATE items SET v = 9 WHERE id = 9")
        person.waits_for(1506)

        window = ["--since", since, "--until", until]
        plan = person.asks("replay", *window, "--all-routes", "--dry-run")
        assert plan == {
            "changes": 1485,
            "tasks": {"tests.bill": 1485, "tests.keyed": 4},
            "parked": 0,
            "gaps": [],
            "source": "binlog",
        }
        early = person.asks("replay", "--since", "2020-01-01", "--task", "tests.bill")
        assert early["code"] == "journal_gap", early
        assert "The binlog begins at" in early["hint"]

        # A listener is killed on the way. Ids, order and bodies are those that the stream had.
        name = person.asks("replay", *window, "--task", "tests.bill", "--rate", "1500")["id"]
        wait_until(lambda: person.count() > 1506, what="the first replayed tasks", timeout=60)
        process.kill()
    with person.running() as process:
        assert person.types("replays", "show", name, "--watch").returncode == 0
        again = person.sent()[1506:]
        assert [each["headers"]["id"] for each in again] == [each["headers"]["id"] for each in first]
        assert [each["body"] for each in again] == [each["body"] for each in first]
        assert {each["headers"]["cdc_replay"] for each in again} == {name}

        # With new ids, of one row.
        person.replays(*window, "--task", "tests.bill", "--id", "2", "--table", "items", "--new-ids")
        more = person.sent()[1506 + len(again) :]
        assert list(map(_what, more)) == [("update", 2, 1), ("update", 2, 2), ("delete", 2, None)]
        assert not {each["headers"]["id"] for each in more} & {each["headers"]["id"] for each in again}
        log = _ends(process)
    assert "replay_done" in log


def _check_commands(person: Person, name: str) -> None:
    """Look at what the commands show and refuse, while no listener runs."""
    (shown,) = person.asks("replays")
    assert (shown["id"], shown["state"], shown["changes"], shown["tasks"]) == (name, "done", 6_000, 6_000)
    assert "id=7, v=0" in person.types("journal", "items", "--id", "7").stdout
    for arguments, reason in (
        (["replay", "--since", "2020-01-01", "--task", "tests.bill", "--wait", "0"], "No listener accepted"),
        (["replay", "--since", "25:00", "--task", "tests.bill"], "is not a time"),
        (["replay", "--since", "2020-01-01"], "--all-routes"),
        (
            ["replay", "--since", "2020-01-01", "--task", "tests.no", "--dry-run"],
            "the task or the id tests.no",
        ),
        (["journal", "--id", "7"], "There is no journal"),
    ):
        if arguments[0] == "journal":
            person.environment["CDC_JOURNAL"] = "/no/such/place"
        done = person.types(*arguments)
        assert done.returncode != 0
        assert reason in " ".join(done.stderr.split()), done.stderr


def test_a_replay_is_exactly_once_although_listener_and_broker_are_killed(
    database: Database, tmp_path: Path
) -> None:
    rows = 6_000
    with ValkeyServer(append_only=True) as server, closing(redis.Redis.from_url(server.url)) as client:
        client.config_set("appendfsync", "always")
        person = Person(database, Broker(server=server, client=client, cache=client), tmp_path)
        with person.running() as process:
            wait_for_listener(database, timeout=60)
            for first in range(1, rows, 100):
                person.inserts(first, first + 99)
            person.waits_for(rows)
            early = person.asks("replay", "--since", "2020-01-01T00:00+00:00", "--task", "tests.bill")
            assert early["code"] == "journal_gap"
            assert "--accept-gap" in early["hint"]
            name = person.asks(
                "replay",
                "--since",
                "2020-01-01T00:00+00:00",
                "--accept-gap",
                "--task",
                "tests.bill",
                "--rate",
                "1000",
            )["id"]
            process.kill()
        for number in range(4):
            with person.running() as process:
                sent = person.count()
                person.inserts(10**6 + number * 10, 10**6 + number * 10 + 9)
                wait_until(lambda: person.count() > sent + 200, what="more tasks", timeout=60)  # noqa: B023 - called here
                if number == 1:
                    server.kill()
                    server.restart()
                process.kill()
        with person.running() as process:
            person.waits_for(2 * rows + 40)
            person.inserts(10**7, 10**7)
            person.waits_for(2 * rows + 41)
            log = _ends(process)
        replayed = [each for each in person.sent() if each["headers"].get("cdc_replay") == name]
        assert [_what(each)[1] for each in replayed] == list(range(1, rows + 1))
        live = Counter(_what(each)[1] for each in person.sent() if "cdc_replay" not in each["headers"])
        assert set(live.values()) == {1}
        assert len(live) == rows + 41
        # The journal has each change once too, although batches came again.
        journalled = Counter(
            each["after"]["id"] for each in person.asks("journal", "items", "--limit", "100000")
        )
        assert journalled == live
        assert person.asks("journal")["gaps"] == []
        assert "journal_gap" not in log
        _check_commands(person, name)
