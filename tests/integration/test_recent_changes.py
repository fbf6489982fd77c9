"""Recent changes of a listener on real servers: over restarts, bounded, and never in the queue's way."""

from __future__ import annotations

import json
import signal
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from harness.waiting import at_most, wait_until
from listener.cli.recent_changes import described
from listener.control.recent.block import OpenBlock
from listener.control.recent.entries import LeftOut, NotedChange, Why
from listener.control.recent.reader import RecentReader, Sought
from listener.control.recent.store import RecentStore
from listener.publish.redis.connection import RedisConnection
from tests.support.listening import wait_for_listener
from tests.support.mysql.source import MySQLDatabase
from tests.support.operators import Operator

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from tests.conftest import Broker, Database

_ROUTES = """
from listener.router import BinlogRouter, changed

def setup(schema="public"):
    router = BinlogRouter()
    router.register(schema, "items", ["insert", "update", "delete"], "tests.bill", queue="PREFIX_bulk")
    router.register(schema, "items", "update", "tests.tell", queue="PREFIX_bulk", when=changed("v"))
    router.accept("tests.later")
    return router
"""
_SAYS = "SELECT pg_logical_emit_message(true, 'cdc_tasks', '{\"context\": {\"user_id\": 7}}');"


class Person(Operator):
    """An operator with a table, routes and a broker."""

    def __init__(self, database: Database | MySQLDatabase, broker: Broker, directory: Path, url: str) -> None:
        database.execute("CREATE TABLE items (code varchar(20) PRIMARY KEY, v int, note varchar(20))")
        super().__init__(
            DATABASE_URL=database.url,
            CELERY_BROKER_URL=url,
            CDC_QUEUE_PREFIX=f"{database.name}_",
            CACHE_URL=broker.cache_url,
            CDC_NAME=database.name,
            CDC_ROUTES="routes_of_mine:setup",
            CDC_CONTEXT_SHOWN="user_id",
            PYTHONPATH=str(directory),
        )
        self.database = database
        self._store_url = url if url == broker.url else broker.cache_url
        (directory / "routes_of_mine.py").write_text(_ROUTES.replace("PREFIX", database.name))

    def sees(self, changes: int) -> list[dict[str, Any]]:
        """Wait for this many recent changes; return them, the oldest first."""
        store = RecentStore(RedisConnection.of_cache(self._store_url), self.database.name)

        def shown() -> list[dict[str, Any]]:
            entries = [entry for _, entry in reversed(RecentReader(store).page(Sought()).entries)]
            found = [each for each in entries if isinstance(each, NotedChange)]
            return (
                [json.loads(json.dumps(described(each))) for each in found] if len(found) >= changes else []
            )

        with closing(store):
            return wait_until(shown, timeout=60, every=0.1, what=f"{changes} changes")


@pytest.fixture(params=["postgresql", "mariadb on rabbitmq"])
def person(request: pytest.FixtureRequest, broker: Broker, tmp_path: Path) -> Person:
    """Someone with each of the databases, and each of the brokers."""
    kind, _, on_rabbitmq = str(request.param).partition(" on ")
    database = request.getfixturevalue("database" if kind == "postgresql" else f"{kind}_database")
    url = request.getfixturevalue("rabbitmq_server").url if on_rabbitmq else broker.url
    return Person(database, broker, tmp_path, url)


def _ends(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> str:
    process.send_signal(number)
    _, log = process.communicate(timeout=at_most(60))
    return log


def test_what_came_last_is_there_without_a_setting_and_after_a_crash(person: Person) -> None:
    database = person.database
    is_postgres = not isinstance(database, MySQLDatabase)
    with person.running() as process:
        wait_for_listener(database, timeout=60)
        database.execute("INSERT INTO items VALUES ('a', 1, 'secret'), ('b', 1, 'secret')")
        says = _SAYS if is_postgres else ""
        database.execute(f"{says} UPDATE items SET note = 'x' WHERE code = 'a'")
        database.execute("DELETE FROM items WHERE code = 'b'")
        found = person.sees(4)
        _ends(process, signal.SIGKILL)

    first, _, third, last = found
    assert [each["event"] for each in found] == ["insert", "insert", "update", "delete"]
    assert [each["key"] for each in found] == [{"code": "a"}, {"code": "b"}, {"code": "a"}, {"code": "b"}]
    assert {route["task"]: route["outcome"] for route in first["routes"]} == {
        "tests.bill": "fired",
        "tests.tell": "event",
    }
    told = {route["task"]: route for route in third["routes"]}
    # PostgreSQL sends no old row unless it is told to, which counts as a change of each column.
    assert told["tests.tell"]["outcome"] == ("fired" if is_postgres else "when")
    assert third["columns"] == (None if is_postgres else ["note"])
    if is_postgres:
        assert third["context"] == {"user_id": 7}
        assert person.asks("changes", "--who", "user_id=7")["changes"] == [third]
        # PostgreSQL does not give the row again.
        assert "Then, it\n    fired tests.bill" in person.types("explain", "--id", last["id"]).stderr
    else:
        assert told["tests.tell"]["reason"].startswith("when=changed('v') is false (")

    with person.running() as process:
        wait_for_listener(database, timeout=60)
        database.execute("INSERT INTO items VALUES ('c', 1, 'secret')")
        again = person.sees(5)
        log = _ends(process)
    assert process.returncode == 0, log
    assert again[:4] == found
    shown = person.types("changes").stdout
    assert "secret" not in shown
    assert "ended without a goodbye" in shown
    assert [each["event"] for each in person.asks("changes", "items", "--id", "code=b")["changes"]] == [
        "insert",
        "delete",
    ]


def test_a_redis_that_refuses_what_is_noted_does_not_stop_the_queue(
    database: Database, broker: Broker, tmp_path: Path
) -> None:
    person = Person(database, broker, tmp_path, broker.url)
    state, queue = f"cdc:{database.name}:recent", f"{database.name}_bulk"
    broker.client.set(state, "somebody else's")
    with person.running("run", CDC_LOG_FORMAT="json") as process:
        wait_for_listener(database, timeout=60)
        for number in range(3):
            database.execute(f"INSERT INTO items VALUES ('{number}', 1, '')")
        wait_until(lambda: broker.client.llen(queue) == 3, timeout=60, what="three tasks")
        assert process.stderr is not None
        while "recent_changes_failed" not in process.stderr.readline():
            assert process.poll() is None
        broker.client.delete(state)
        database.execute("INSERT INTO items VALUES ('last', 1, '')")
        (*_, shown) = person.sees(1)
        log = _ends(process)
    assert broker.client.llen(queue) == 4
    assert shown["key"] == {"code": "last"}
    assert "recent_changes_failed" not in log  # again
    assert "recent_changes_work_again" in log

    # Nothing is noted if nobody wants it.
    broker.client.delete(state)
    with person.running(CDC_RECENT_SIZE="0") as process:
        wait_for_listener(database, timeout=60)
        database.execute("INSERT INTO items VALUES ('unseen', 1, '')")
        wait_until(lambda: broker.client.llen(queue) == 5, timeout=60, what="five tasks")
        _ends(process)
    assert not broker.client.exists(state)
    assert "CDC_RECENT_SIZE is 0" in person.types("changes", CDC_RECENT_SIZE="0").stdout


def _block(number: int) -> bytes:
    block = OpenBlock()
    block.leave_out(LeftOut(why=Why.RATE, count=number, first="x" * 500))
    return block.packed()


def _numbers(store: RecentStore) -> list[Any]:
    page = RecentReader(store).page(Sought())
    return [entry.count for _, entry in page.entries if isinstance(entry, LeftOut)]


def test_redis_keeps_no_more_than_it_may(any_broker: Broker) -> None:
    store = RecentStore(RedisConnection.of_cache(any_broker.cache_url), "bounded")
    size = len(_block(100)) + 100
    limit = 20 * size
    for number in range(100, 200, 5):
        store.write([_block(each) for each in range(number, number + 5)], b"", limit, is_first=False)
    kept = _numbers(store)
    assert kept == list(range(199, 199 - len(kept), -1))
    assert 15 <= len(kept) <= 20
    assert store.sizes().bytes <= limit
    # What a listener left open becomes a block; a reader sees the open one first.
    store.write([], _block(200), limit, is_first=False)
    store.write([], _block(201), limit, is_first=True)
    assert _numbers(store)[:3] == [201, 200, 199]
    assert store.is_open()
    # A reader that is in the middle when more comes sees no block twice.
    blocks = store.blocks()
    seen = [next(blocks).number, next(blocks).number]
    store.write([_block(each) for each in range(300, 304)], b"", limit, is_first=False)
    seen += [each.number for each in blocks]
    assert seen == sorted(set(seen), reverse=True)
    store.halve()
    assert 0 < len(_numbers(store)) <= len(kept) // 2 + 1
    any_broker.cache.lpush(store.blocks_key, b"foreign")
    assert RecentReader(store).page(Sought()).unreadable == 1
    assert store.memory().used > 0
    store.write([], b"", 0, is_first=False, is_last=True)
    assert _numbers(store) == []
    assert not store.is_open()
    store.close()
