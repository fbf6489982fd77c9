"""`watch` shows each committed change and what it would fire; `explain --id` looks one of them up."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cdc_tasks import BinlogRouter
from cdc_tasks.errors import CDCError
from harness.waiting import at_most, wait_until
from listener.cli.given_change import given_change
from listener.daemon.settings import ListenerSettings, load
from tests.support.listening import wait_for_listener
from tests.support.mysql.source import MySQLDatabase
from tests.support.operators import Operator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Broker, Database

_ROUTES = """
from cdc_tasks import BinlogRouter, became


def setup(schema="public"):
    router = BinlogRouter()
    router.register(schema, "items", ["insert", "update"], "tests.bill",
                    when=became("status", "paid"), args=["id"], key="id")
    router.register(schema, "items", "insert", "tests.large", when=lambda change: change.row["id"] > 100)
    router.register(schema, "items", "update", "tests.fails", args=lambda change: [change.row["nothing"]])
    router.accept("tests.*")
    return router
"""
_LINE = 7  # of the first route
_ENQUEUED = '{"enqueue": {"task": "%s", "args": [7]}}'


class Person(Operator):
    """An operator with a table, routes, and a broker."""

    def __init__(self, database: Database | MySQLDatabase, broker: Broker, directory: Path) -> None:
        database.execute("CREATE TABLE items (id int PRIMARY KEY, status text)")
        super().__init__(
            DATABASE_URL=database.url,
            CELERY_BROKER_URL=broker.url,
            CACHE_URL=broker.cache_url,
            CDC_NAME=database.name,
            CDC_ROUTES="routes_of_mine:setup",
            CDC_CONTEXT_SHOWN="request",
            CDC_JOURNAL=str(directory),
            PYTHONPATH=str(directory),
        )
        (directory / "routes_of_mine.py").write_text(_ROUTES)
        self.routes = str(directory / "routes_of_mine.py")

    @contextmanager
    def watching(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Watch in the background, from when it says so; ended with Ctrl-C, which is a success."""
        with subprocess.Popen(
            [sys.executable, "-m", "listener", "watch", *arguments],
            cwd=Path(__file__).parents[2], env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            try:
                told = _line_with("Watching ", process.stderr)
                assert "Nothing is sent. Ctrl-C ends it." in told
                yield process
                process.send_signal(signal.SIGINT)
                assert process.wait(timeout=at_most(20)) == 0
            finally:
                process.kill()


def _line_with(text: str, stream: Any) -> str:
    """Return the next line that has the text; fail with all lines if the program ends before."""
    lines: list[str] = []
    for line in stream:
        lines.append(line)
        if text in line:
            return str(line)
    raise AssertionError(lines)


def _seen(watch: subprocess.Popen[str], count: int) -> list[dict[str, Any]]:
    assert watch.stdout is not None
    return [json.loads(watch.stdout.readline()) for _ in range(count)]


def _outcomes(seen: dict[str, Any]) -> dict[str, str]:
    return {each["task"]: each["outcome"] for each in seen["routes"]}


def test_beside_a_listener_each_change_is_shown_with_what_it_fires(
    database: Database, broker: Broker, tmp_path: Path
) -> None:
    person = Person(database, broker, tmp_path)
    refused = person.asks("watch")
    assert (refused["code"], "does not exist" in refused["message"]) == ("not_published", True)
    database.execute("CREATE TABLE beside (id int PRIMARY KEY)")
    with person.running() as listener:
        wait_for_listener(database, timeout=30)
        published = database.fetch("SELECT tablename FROM pg_publication_tables")
        with person.watching("--json") as watch:
            assert "public.beside" in _line_with("does not send", watch.stderr)
            _commit_some(database)
            first, paid, task, refused = _seen(watch, 4)
            assert _outcomes(first) == {"tests.bill": "when", "tests.large": "when", "tests.fails": "event"}
            (bill, large, _) = first["routes"]
            assert (bill["reason"], bill["place"]) == (
                "when=became('status', 'paid') is false: status is not 'paid'",
                f"{person.routes}:{_LINE}",
            )
            assert (large["when"], large["place"]) == (f"{person.routes}:{_LINE + 2}",) * 2
            assert _outcomes(paid) == {"tests.bill": "fires", "tests.large": "event", "tests.fails": "parks"}
            (bill, _, fails) = paid["routes"]
            assert (bill["queue"], bill["args"], bill["key"].partition(":")[2]) == ("celery", [7], "7")
            assert fails["place"] == f"{person.routes}:{_LINE + 3}"
            assert [_outcomes(task), _outcomes(refused)] == [
                {"tests.mail": "fires"},
                {"others.mail": "parks"},
            ]

            # The server ends the connection, and with it the slot.
            database.execute(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE temporary"
            )
            _line_with("Reading again. Changes committed meanwhile are not shown.", watch.stderr)
            said = '{"context": {"request": "r-8", "user": "anna"}}'
            says = f"SELECT pg_logical_emit_message(true, 'cdc_tasks', '{said}')"
            database.execute(f"{says}; INSERT INTO items VALUES (108, 'paid')")
            (after,) = _seen(watch, 1)
            assert after["change"]["after"] == {"id": 108, "status": "paid"}
            assert (
                after["change"]["context"] == after["routes"][1]["args"][0]["context"] == {"request": "r-8"}
            )
            assert person.types("pause", "tests.large").returncode == 0
            database.execute("INSERT INTO items VALUES (101, 'new')")
            (waits,) = _seen(watch, 1)
        wait_until(
            lambda: database.fetch("SELECT slot_name FROM pg_replication_slots") == [(database.name,)],
            what="the temporary slot to be gone",
        )
        assert database.fetch("SELECT tablename FROM pg_publication_tables") == published
        wait_until(lambda: broker.client.llen("celery") == 4, what="the tasks that the listener has sent")
        _look_up(person, after, paid)
        wait_until(lambda: broker.client.exists(f"cdc:{database.name}:set-aside"), what="what is set aside")
        found = person.asks("explain", "--id", waits["change"]["id"], CDC_JOURNAL="")
        assert (found["found_in"], found["change"]) == ("the messages set aside", waits["change"])
        assert found["routes"][1]["held"] == "paused: its messages are set aside"
        assert (
            found["notes"][0]
            == f"It is set aside from the queue celery: its route {found['routes'][1]['id']} is paused."
        )
        listener.send_signal(signal.SIGTERM)
        assert listener.wait(timeout=at_most(20)) == 0


def _commit_some(database: Database) -> None:
    """Commit a new row, an update of it, and a transaction that enqueues two tasks, of which one is accepted."""
    database.execute("INSERT INTO items VALUES (7, 'new')")
    database.execute("ALTER TABLE items REPLICA IDENTITY FULL")
    database.execute("UPDATE items SET status = 'paid'")
    emit = "SELECT pg_logical_emit_message(true, 'cdc_tasks', %s), pg_logical_emit_message(true, 'cdc_tasks', %s)"
    database.execute(emit, _ENQUEUED % "tests.mail", _ENQUEUED % "others.mail")


def _look_up(person: Person, fired: dict[str, Any], parked: dict[str, Any]) -> None:
    """The ids that were shown are those of the listener's tasks and changes."""
    task = fired["routes"][0]["task_id"]
    found = person.asks("explain", "--id", task)
    assert (found["found_in"], found["change"]) == ("the journal", fired["change"])
    said = "  context: request='r-8', user"
    assert said in person.types("explain", "--id", task).stdout.splitlines()
    assert found["routes"][0]["task_id"] == task
    found = person.asks("explain", "--id", parked["change"]["id"], CDC_JOURNAL="")
    assert found["found_in"] == "the parked changes"
    assert [each["outcome"] for each in found["routes"]] == ["fires", "event", "parks"]
    missing = person.asks("explain", "--id", "6b02f19d5f9f4859-16B3748-303D94F1B8A40-0")
    assert missing["code"] == "change_not_found"
    for place in (
        "The journal: it begins at",
        "Parked changes: 2 changes",
        "PostgreSQL does not send",
    ):
        assert place in missing["message"]


def test_names_that_the_database_does_not_have_are_told_with_those_that_are_close(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database.url)
    database.execute("CREATE TABLE items (id int PRIMARY KEY, status text)")
    for table, row, code, meant in (
        ("itmes", '{"id": 7}', "no_such_table", "public.items"),
        ("items", '{"id": 7, "staus": "paid"}', "no_such_column", "status"),
    ):
        with pytest.raises(CDCError) as refused:
            given_change(load(ListenerSettings), BinlogRouter(), (table, "insert"), None, row)
        assert (refused.value.code, f"Did you mean {meant}?" in refused.value.message) == (code, True)


def test_without_a_publication_wal2json_shows_the_rows_that_are_asked_for(
    debian_database: Database, broker: Broker, tmp_path: Path
) -> None:
    person = Person(debian_database, broker, tmp_path)
    arguments = ("items", "--where", "id>6", "--where", "status!=null", "--no-values")
    with person.watching(*arguments) as watch:
        debian_database.execute("INSERT INTO items VALUES (6, 'paid')")
        debian_database.execute("INSERT INTO items VALUES (7, 'paid')")
        assert watch.stdout is not None
        lines = [watch.stdout.readline() for _ in range(6)]
    assert " public.items insert  " in lines[0]
    assert lines[1] == "  id, status\n"
    assert lines[2].startswith(
        "  fires tests.bill → celery: when=became('status', 'paid') is true: status is 'paid'"
    )
    assert lines[3].startswith("    key ")
    assert "paid" not in lines[3] + lines[4]
    assert debian_database.fetch("SELECT pubname FROM pg_publication") == []


def test_a_binlog_is_watched_as_by_one_more_replica(
    mariadb_database: MySQLDatabase, broker: Broker, tmp_path: Path
) -> None:
    person = Person(mariadb_database, broker, tmp_path)
    mariadb_database.execute(
        "CREATE TABLE cdc_tasks_marks (id CHAR(36) PRIMARY KEY, says MEDIUMTEXT NOT NULL)"
    )
    with person.running() as listener:
        wait_for_listener(mariadb_database, timeout=30)
        with person.watching("--json") as watch:
            said = _ENQUEUED % "tests.mail"
            mariadb_database.execute(
                "BEGIN",
                "INSERT INTO items VALUES (7, 'paid')",
                f"INSERT INTO cdc_tasks_marks VALUES ('a', '{said}')",
                "DELETE FROM cdc_tasks_marks",
                "COMMIT",
            )
            row, task = _seen(watch, 2)
        assert _outcomes(row) == {"tests.bill": "fires", "tests.large": "when", "tests.fails": "event"}
        found = person.asks("explain", "--id", row["change"]["id"], CDC_JOURNAL="")
        assert (found["found_in"], found["change"]) == ("the binlog", row["change"])
        assert (row["change"]["after"], _outcomes(task)) == (
            {"id": 7, "status": "paid"},
            {"tests.mail": "fires"},
        )
        wait_until(lambda: broker.client.llen("celery") == 2, what="the tasks that the listener has sent")
        listener.send_signal(signal.SIGTERM)
        assert listener.wait(timeout=at_most(20)) == 0
