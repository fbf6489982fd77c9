"""Each change of a transaction knows who made it, and its place in the transaction."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from structlog.testing import capture_logs

import cdc_tasks
from cdc_tasks import in_context
from cdc_tasks.changes import RowChange
from cdc_tasks.outbox.transaction import MarkError, emit
from cdc_tasks.routing.contexts import CONTEXT_HEADER, ContextError
from cdc_tasks.routing.enqueued import CREATE_MARKS
from harness.waiting import wait_until
from listener.daemon.loop import Listener
from listener.mysql.monitor import BinlogMonitor
from listener.postgres.monitor import PostgresWALMonitor
from listener.publish.redis.publisher import RedisPublisher
from listener.router import BinlogRouter
from tests.support.listening import running
from tests.support.publishing import celery_app, messages

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Broker, Database

_ITEMS = "CREATE TABLE items (id int PRIMARY KEY)"


def _router(schema: str) -> BinlogRouter:
    def seen(change: Any) -> list[Any]:
        return [change.row["id"], change.context, *change.transaction]

    router = BinlogRouter()
    router.register(schema, "items", "insert", "shop.seen", queue="seen", args=seen)
    router.register(schema, "items", "insert", "shop.whole", queue="whole", key="id")
    router.register(
        schema, "items", "insert", "shop.mine", queue="mine", args=["id"], when=in_context(user=7)
    )
    router.register(
        schema,
        "items",
        "insert",
        "shop.once",
        queue="once",
        args=["id"],
        when=lambda c: c.transaction.is_last,
    )
    router.accept("shop.*")
    return router


class _Source:
    """A database of any kind, with a table of items."""

    def __init__(self, database: Any, plugin: str | None) -> None:
        self._database = database
        self._plugin = plugin
        database.execute(_ITEMS) if plugin else database.execute(CREATE_MARKS, _ITEMS)

    def listener(self, broker: Broker, *, batch_size: int, max_queue: int | None = None) -> Listener:
        database = self._database
        router = _router("public" if self._plugin else database.name)
        if self._plugin:
            monitor: Any = PostgresWALMonitor(
                database.url, slot=database.name, publication=database.name, routes=router.routes,
                prefixes=router.prefixes, plugin=self._plugin, batch_size=batch_size,
            )  # type: ignore[arg-type]  # fmt: skip
        else:
            monitor = BinlogMonitor(
                database.url, name=database.name, routes=router.routes, batch_size=batch_size
            )
        publisher = RedisPublisher(celery_app(broker.url), name=database.name, max_queue=max_queue)
        return Listener(monitor, router, publisher)

    def running(self, listener: Listener) -> Any:
        return running(listener, self._database)

    def transaction(self, *steps: Callable[[Any], Any], commits: bool = True) -> None:
        connect = psycopg2.connect if self._plugin else None
        opened = connect(self._database.url) if connect else self._database.connect(autocommit=False)
        with closing(opened) as connection:
            for step in steps:
                step(connection)
            if commits:
                connection.commit()


@pytest.fixture(params=["pgoutput", "wal2json", "mysql", "mariadb"])
def source(request: pytest.FixtureRequest) -> _Source:
    name = str(request.param)
    fixture = {"pgoutput": "database", "wal2json": "debian_database"}.get(name, f"{name}_database")
    return _Source(request.getfixturevalue(fixture), name if name in {"pgoutput", "wal2json"} else None)


def _run(statement: str) -> Callable[[Any], None]:
    def run(connection: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(statement)

    return run


def _items(first: int, last: int | None = None) -> Callable[[Any], None]:
    rows = ", ".join(f"({number})" for number in range(first, (last or first) + 1))
    return _run(f"INSERT INTO items VALUES {rows}")


def _says(**values: Any) -> Callable[[Any], None]:
    return lambda connection: cdc_tasks.context(connection, **values)


def _raw(content: str) -> Callable[[Any], None]:
    return lambda connection: emit(connection, content)


def _task(number: int) -> Callable[[Any], str]:
    return lambda connection: cdc_tasks.enqueue(
        connection, "shop.sent", number, queue="sent", task_id=f"t{number}"
    )


def _heard(broker: Broker, queue: str) -> list[Any]:
    """Return the first arguments of the tasks in a queue, each with its message's context."""
    return [(each["body"][0], each["headers"].get(CONTEXT_HEADER)) for each in messages(broker.client, queue)]


_SEVEN = {"user": 7, "request": "Ä-1", "share": 0.5, "is_admin": False, "team": None}


def test_changes_and_tasks_have_the_context_of_their_transaction_and_their_place_in_it(
    source: _Source, broker: Broker
) -> None:
    with source.running(source.listener(broker, batch_size=1, max_queue=1)):
        source.transaction(
            _items(1),
            _says(**_SEVEN),
            _items(2, 3),
            _run("SAVEPOINT a"),
            _says(user=8),
            _items(90),
            _task(90),
            _run("ROLLBACK TO SAVEPOINT a"),
            _items(4),
            _task(1),
            _says(user=9, team="x%b"),
            _items(5),
            _task(2),
            _task(3),
        )
        source.transaction(_says(user=7), _items(91), commits=False)
        source.transaction(_items(6, 8))
        source.transaction(_says(user=7), _items(9))
        wait_until(lambda: broker.client.llen("seen"), what="the first batch", timeout=30)
    broker.client.rename("seen", "before")  # the queue was full: that listener ended within the transaction
    with source.running(source.listener(broker, batch_size=3)):
        done = lambda: [args for args, _ in _heard(broker, "once")][-1:] == [[9]]  # noqa: E731
        wait_until(done, what="the last task", timeout=60)
    nine = {**_SEVEN, "user": 9, "team": "x%b"}
    contexts = {1: None, 2: _SEVEN, 3: _SEVEN, 4: _SEVEN, 5: nine, 6: None, 7: None, 8: None, 9: {"user": 7}}
    seen = [*_heard(broker, "before"), *_heard(broker, "seen")]
    assert [(args[0], args[1], header) for args, header in seen] == [
        (number, context, context) for number, context in contexts.items()
    ]
    numbers = [args[3] for args, _ in seen]
    assert numbers[0] == 1
    assert numbers[:5] == sorted(set(numbers[:5]))
    assert numbers[5:] == [1, 2, 3, 1]
    assert [args[0] for args, _ in seen if args[4]] == [5, 8, 9]
    assert [args for args, _ in _heard(broker, "once")] == [[5], [8], [9]]
    assert len({args[2] for args, _ in seen}) == 3
    assert [args for args, _ in _heard(broker, "mine")] == [[2], [3], [4], [9]]
    assert _heard(broker, "sent") == [([1], _SEVEN), ([2], nine), ([3], nine)]
    for message in messages(broker.client, "whole"):
        change = RowChange.from_message(message["body"][0][0])
        assert change.context == contexts[change.row["id"]] == message["headers"].get(CONTEXT_HEADER)
        assert ("context" in message["body"][0][0]) is (change.context is not None)
        place = next(args[2:4] for args, _ in seen if args[0] == change.row["id"])
        assert list(change.transaction[:2]) == place
        assert "Ä-1" not in message["headers"]["argsrepr"]


def test_a_call_that_makes_no_context_says_so_at_once(database: Database) -> None:
    with closing(psycopg2.connect(database.url)) as connection:
        for wrong, code in (
            ({}, "context_empty"),
            ({"user": [7]}, "context_value"),
            ({"user": float("nan")}, "context_value"),
            ({"user": 2**63}, "context_value"),
            ({"user": "\ud800"}, "context_value"),
            ({"two words": 7}, "context_name"),
            ({"text": "x" * 2000}, "context_too_large"),
        ):
            with pytest.raises(ContextError) as caught:
                cdc_tasks.context(connection, **wrong)
            assert caught.value.code == code
            assert caught.value.hint
        connection.autocommit = True
        with pytest.raises(MarkError):
            cdc_tasks.context(connection, user=7)


def test_a_context_in_the_log_that_makes_no_sense_is_left_out(source: _Source, broker: Broker) -> None:
    said = ['{"context": 7}', '{"context": {"user": [1]}}', json.dumps({"context": {"text": "x" * 1900}})] * 2
    with capture_logs() as logs, source.running(source.listener(broker, batch_size=1000)):
        source.transaction(_says(user=7), *map(_raw, said), _says(more="y" * 200), _items(1))
        wait_until(lambda: _heard(broker, "once"), what="the task", timeout=30)
    (((_, context, *_), header),) = _heard(broker, "seen")
    assert context == header == {"user": 7, "text": "x" * 1900}
    ignored = [line["code"] for line in logs if line["event"] == "context_ignored"]
    assert ignored == ["context_empty", "context_value"] * 2 + ["context_too_large"]
