"""A task that a transaction enqueues runs if, and only if, it commits."""

from __future__ import annotations

import json
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import amqp
import psycopg2
import pytest
import sqlalchemy
from celery import Celery
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy.orm import Session
from structlog.testing import capture_logs

import cdc_tasks
from cdc_tasks import tracing
from cdc_tasks.errors import CDCError
from cdc_tasks.outbox.transaction import MarkError
from cdc_tasks.routing.enqueued import CREATE_MARKS, EnqueuedTaskError
from cdc_tasks.routing.message_groups import KEY_HEADER
from cdc_tasks.routing.router import Call
from cdc_tasks.testing import enqueued_tasks
from harness.waiting import at_most, wait_until
from listener.cli.parked_changes import fire, send
from listener.core.findings import State
from listener.daemon.loop import Listener
from listener.mysql.check import check_mysql
from listener.mysql.monitor import BinlogMonitor
from listener.postgres.monitor import PostgresWALMonitor
from listener.publish.parked import parked_key, read_parked
from listener.publish.redis.publisher import RedisPublisher
from listener.publish.spans import Spans
from listener.router import BinlogRouter, EventType
from tests.support.listening import running
from tests.support.publishing import celery_app, in_background, messages
from tests.support.rabbitmq import drain, kombu_publisher, open_channel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cdc_tasks.routing.router import BinlogRouter as Router
    from harness.machine_servers import RabbitMQServer
    from listener.publish.parked import ParkedChange
    from tests.conftest import Broker, Database, MySQLDatabase

_ROWS = "CREATE TABLE rows (id int PRIMARY KEY)"


@pytest.fixture
def router() -> Router:
    router = BinlogRouter()
    router.register("public", "rows", EventType.INSERT, "shop.row", queue="shop", args=["id"])
    router.accept("shop.*")
    return router


@pytest.fixture
def accepting() -> Router:
    """A router without any table."""
    router = BinlogRouter()
    router.accept("shop.*")
    return router


@pytest.fixture(params=["pgoutput", "wal2json"])
def plugin(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def database_of(plugin: str, request: pytest.FixtureRequest) -> Database:
    """A database whose server has the plugin."""
    found: Database = request.getfixturevalue("database" if plugin == "pgoutput" else "debian_database")
    found.execute(_ROWS)
    return found


def make_listener(
    database: Database, broker: Broker, router: Router, *, max_parked: int | None = None, **options: Any
) -> Listener:
    monitor = PostgresWALMonitor(
        database.url, slot=database.name, publication=database.name, routes=router.routes,
        prefixes=router.prefixes, **options,
    )  # fmt: skip
    publisher = RedisPublisher(celery_app(broker.url), name=database.name, max_parked=max_parked)
    return Listener(monitor, router, publisher)


def _sent(broker: Broker, queue: str = "shop") -> list[tuple[str, Any]]:
    return [(each["headers"]["task"], each["body"][0]) for each in messages(broker.client, queue)]


def _arrived(broker: Broker, number: int, queue: str = "shop") -> None:
    wait_until(lambda: len(_sent(broker, queue)) >= number, what="the tasks", timeout=30)


def _parked(broker: Broker, database: Database) -> list[ParkedChange]:
    return list(read_parked(broker.client, parked_key(f"cdc:{database.name}")))


def _in_transaction(database: Database, *steps: Callable[[Any], Any]) -> None:
    with closing(psycopg2.connect(database.url)) as connection, connection:
        for step in steps:
            step(connection)


def _insert(row: int) -> Callable[[Any], None]:
    def insert(connection: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO rows VALUES (%s)", [row])

    return insert


def _statement(statement: str) -> Callable[[Any], None]:
    def run(connection: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(statement)

    return run


def _task(*args: Any, **options: Any) -> Callable[[Any], str]:
    return lambda connection: cdc_tasks.enqueue(
        connection, "shop.send", *args, **{"queue": "shop", **options}
    )


def test_tasks_come_with_the_commit_at_their_places_among_the_changes(
    database_of: Database, broker: Broker, router: Router, plugin: str
) -> None:
    with running(make_listener(database_of, broker, router, plugin=plugin), database_of):
        _in_transaction(
            database_of,
            _insert(1),
            _task(1),
            _insert(2),
            _statement("SAVEPOINT a"),
            _insert(90),
            _task(90),
            _statement("ROLLBACK TO a"),
            _task("two", 2.5, {"deep": [None, 2**70]}, kwargs={"name": "Ä ☺"}),
        )
        with closing(psycopg2.connect(database_of.url)) as connection:  # and is rolled back
            _insert(91)(connection)
            _task(91)(connection)
        _in_transaction(database_of, _insert(3))
        _arrived(broker, 5)
    assert _sent(broker) == [
        ("shop.row", [1]),
        ("shop.send", [1]),
        ("shop.row", [2]),
        ("shop.send", ["two", 2.5, {"deep": [None, 2**70]}]),
        ("shop.row", [3]),
    ]
    assert messages(broker.client, "shop")[3]["body"][1] == {"name": "Ä ☺"}


def test_a_task_keeps_its_place_before_the_rows_of_other_savepoints(
    database_of: Database, broker: Broker, router: Router, plugin: str
) -> None:
    with running(make_listener(database_of, broker, router, plugin=plugin), database_of):
        _in_transaction(
            database_of, _statement("SAVEPOINT a"), _task(1), _statement("RELEASE SAVEPOINT a"), _insert(2)
        )
        engine = sqlalchemy.create_engine(database_of.url.replace("postgresql:", "postgresql+psycopg2:"))
        with Session(engine) as session, session.begin():
            with session.begin_nested():
                cdc_tasks.enqueue(session, "shop.send", 3, queue="shop")
            session.execute(sqlalchemy.text("INSERT INTO rows VALUES (4)"))
            cdc_tasks.enqueue(session, "shop.send", 5, queue="shop")
            with session.begin_nested():
                session.execute(sqlalchemy.text("INSERT INTO rows VALUES (6)"))
        with Session(engine) as session, session.begin():  # the first of all, outside of savepoints
            cdc_tasks.enqueue(session, "shop.send", 7, queue="shop")
            with session.begin_nested():
                session.execute(sqlalchemy.text("INSERT INTO rows VALUES (8)"))
        engine.dispose()
        _arrived(broker, 8)
    assert [args for _, args in _sent(broker)] == [[number] for number in range(1, 9)]


def test_the_message_is_the_one_that_apply_async_sends(
    database: Database, broker: Broker, accepting: Router
) -> None:
    options: dict[str, Any] = {
        "task_id": "my-own-id", "queue": "shop", "priority": 3, "headers": {"tenant": "a%b"}, "shadow": "other",
        "time_limit": 30, "soft_time_limit": 20, "ignore_result": True,
    }  # fmt: skip
    app = celery_app(broker.url)
    app.send_task("shop.send", [42], {"name": "x"}, **options)
    (theirs,) = messages(broker.client, _keys_of(broker, "shop")[0])
    broker.client.flushdb()
    with running(make_listener(database, broker, accepting), database):
        _in_transaction(database, _task(42, kwargs={"name": "x"}, **options))
        wait_until(lambda: _keys_of(broker, "shop"), what="the task", timeout=30)
    (ours,) = messages(broker.client, _keys_of(broker, "shop")[0])
    assert ours["headers"]["argsrepr"].startswith("<shop.send enqueued ")  # no argument is shown
    for message in (ours, theirs):
        for name in ("argsrepr", "kwargsrepr"):
            message["headers"].pop(name)
        for name in ("delivery_tag", "reply_to"):
            message["properties"].pop(name)
    assert ours == theirs


def _keys_of(broker: Broker, queue: str) -> list[str]:
    return [key.decode() for key in broker.client.keys(f"{queue}*") if broker.client.type(key) == b"list"]


def test_ids_keys_times_and_repeated_ids(database: Database, broker: Broker, accepting: Router) -> None:
    given: list[str] = []

    def several(connection: Any) -> None:
        given.append(_task(1)(connection))
        given.append(_task(2, task_id="twice")(connection))
        given.append(_task(3, task_id="twice")(connection))
        given.append(_task(4, countdown=3600, expires=7200)(connection))
        given.append(_task(5, eta="2031-01-01T00:00:00+00:00")(connection))
        given.append(_task(6, key=("orders", 7), on_failure="hold")(connection))

    with running(make_listener(database, broker, accepting), database):
        _in_transaction(database, several)
        _arrived(broker, 6)
    found = messages(broker.client, "shop")
    assert [each["headers"]["id"] for each in found] == given
    assert given[1] == given[2] == "twice"
    assert len({each["properties"]["delivery_tag"] for each in found}) == len(found)
    assert found[5]["headers"][KEY_HEADER] == "orders:7"
    assert found[3]["headers"]["eta"] < found[3]["headers"]["expires"]
    assert found[4]["headers"]["eta"] == "2031-01-01T00:00:00+00:00"


def test_what_no_route_accepts_or_makes_no_sense_is_kept_and_all_else_goes_on(
    database_of: Database, broker: Broker, router: Router, plugin: str
) -> None:
    said = [
        '{"enqueue": {"task": "shop.send", "args": [1], "options": {"queue": "shop"}}}',
        '{"enqueue": {"task": "celery.backend_cleanup"}}',
        '{"enqueue": {"task": "shop.send", "args": 5}}',
        '{"enqueue": {"task": "shop.send", "options": {"link": "x"}}}',
        '{"enqueue": {"task": "shop.send", "options": {"headers": {"task": "celery.backend_cleanup"}}}}',
        '{"enqueue": {"task": "shop.send", "options": {"on_failure": []}}}',
        '{"enqueue": "shop.send"}',
        "no JSON",
        "[" * 100_000,
        '["enqueue"]',
        '{"enqueue": {"task": "shop.send", "args": [2], "options": {"queue": "shop"}}}',
    ]
    with running(make_listener(database_of, broker, router, plugin=plugin), database_of):
        _in_transaction(database_of, lambda connection: _say(connection, said), _insert(3))
        _arrived(broker, 3)
    assert _sent(broker) == [("shop.send", [1]), ("shop.send", [2]), ("shop.row", [3])]
    parked = sorted(_parked(broker, database_of), key=lambda each: each.change.position)
    errors = [each.error.partition(":")[0] for each in parked]
    assert errors == ["TaskNotAcceptedError", *["EnqueuedTaskError"] * 5]
    assert [each.task for each in parked] == ["celery.backend_cleanup", *["shop.send"] * 4, "?"]
    assert json.loads((parked[1].logged or {})["message"]) == {"task": "shop.send", "args": 5}


def _say(connection: Any, contents: list[str]) -> None:
    with connection.cursor() as cursor:
        for each in contents:
            cursor.execute("SELECT pg_logical_emit_message(true, 'cdc_tasks', %s)", [each])


def test_a_task_for_which_there_is_no_queue_is_parked_and_the_listener_goes_on(
    database: Database, broker: Broker, accepting: Router
) -> None:
    with running(make_listener(database, broker, accepting), database):
        _in_transaction(
            database, _task(1), _task(2, queue=None, exchange="nowhere", routing_key="x"), _task(3)
        )
        _arrived(broker, 2)
    assert _sent(broker) == [("shop.send", [1]), ("shop.send", [3])]
    assert [(each.arguments, each.error.partition(":")[0]) for each in _parked(broker, database)] == [
        ([2], "EnvelopeError")
    ]


def test_too_many_that_are_refused_make_the_listener_wait_and_the_next_ones_come_afterwards(
    database: Database, broker: Broker, accepting: Router
) -> None:
    refused = [_task(number, queue=None, exchange="nowhere", routing_key="x") for number in range(3)]
    note = f"cdc:{database.name}:paused"
    with running(make_listener(database, broker, accepting, max_parked=2), database):
        _in_transaction(database, *refused)
        wait_until(lambda: broker.client.get(note), what="the listener to wait")
        pause = json.loads(broker.client.get(note))
        _in_transaction(database, _task(3))
        assert _sent(broker) == []
        parked = _parked(broker, database)
        broker.client.hdel(parked_key(f"cdc:{database.name}"), parked[0].id)
        _arrived(broker, 1)
    assert (pause["setting"], pause["max_queue"], len(parked)) == ("CDC_MAX_PARKED", 2, 3)


def test_another_prefix_has_tasks_of_its_own(database: Database, broker: Broker) -> None:
    router = BinlogRouter()
    router.accept("shop.*", prefix="shop")
    say = """SELECT pg_logical_emit_message(true, '{prefix}', '{{"enqueue": {{"task": "shop.{name}"}}}}')"""
    with running(make_listener(database, broker, router), database):
        for prefix, name in (("other", "a"), ("cdc_tasks", "b"), ("shop", "c")):
            _in_transaction(database, _statement(say.format(prefix=prefix, name=name)))
        _arrived(broker, 1, "celery")
    assert _sent(broker, "celery") == [("shop.c", [])]
    assert [each.task for each in _parked(broker, database)] == ["shop.b"]


def test_tasks_are_sent_once_over_restarts_in_the_middle_of_a_transaction(
    database: Database, broker: Broker, router: Router
) -> None:
    database.execute(_ROWS)

    def write(connection: Any) -> None:
        for number in range(300):
            (_insert if number % 3 else _task)(number)(connection)

    for batch_size in (1, 7):
        with running(make_listener(database, broker, router, batch_size=batch_size), database):
            if batch_size == 1:
                _in_transaction(database, write)
            _arrived(broker, 5 if batch_size == 1 else 300)
    assert [args for _, args in _sent(broker)] == [[number] for number in range(300)]


@pytest.fixture
def engine(database: Database) -> Iterator[sqlalchemy.Engine]:
    engine = sqlalchemy.create_engine(database.url.replace("postgresql:", "postgresql+psycopg2:"))
    yield engine
    engine.dispose()


def test_sessions_connections_and_tasks_as_objects(
    database: Database, broker: Broker, accepting: Router, engine: sqlalchemy.Engine
) -> None:
    app = Celery()

    @app.task(name="shop.pay")
    def pay(order: int, *, amount: str) -> None: ...

    with running(make_listener(database, broker, accepting), database):
        with Session(engine) as session, session.begin():
            cdc_tasks.enqueue(session, pay, 1, kwargs={"amount": "2.50"}, queue="shop")
            with pytest.raises(TypeError):
                cdc_tasks.enqueue(session, pay, 1)
        with engine.begin() as connection:
            cdc_tasks.enqueue(connection, "shop.send", queue="shop")
        _arrived(broker, 2)
    assert _sent(broker) == [("shop.pay", [1]), ("shop.send", [])]


def test_a_call_that_makes_no_message_says_so_at_once(database: Database) -> None:
    with closing(psycopg2.connect(database.url)) as connection:
        for wrong, named in (
            ({"link": "x"}, "link"),
            ({"countdown": -1}, "countdown"),
            ({"eta": "tomorrow"}, "eta"),
            ({"countdown": 1, "eta": "2031-01-01"}, "countdown"),
            ({"on_failure": "hold"}, "key"),
            ({"headers": 3}, "headers"),
            ({"headers": {"task": "celery.other"}}, "headers"),  # it would run what no route accepts
            ({"headers": {"cdc_key": "orders:1"}}, "headers"),
            ({"headers": {"number": 2**70}}, "headers"),
            ({"headers": {"half": "\ud800"}}, "headers"),
            ({"delivery_mode": [1]}, "delivery_mode"),
            ({"queue": "half \ud800"}, "queue"),
            ({"queue": "amq.own"}, "queue"),
            ({"queue": "x" * 256}, "queue"),
            ({"exchange": "x" * 256}, "exchange"),
            ({"headers": {"number": 2**63}}, "headers"),
            ({"headers": {"deep": [{"x" * 256: 1}]}}, "headers"),
            ({"task_id": "two words"}, "id"),
        ):
            with pytest.raises(EnqueuedTaskError) as caught:
                cdc_tasks.enqueue(connection, "shop.send", **wrong)
            assert named in str(caught.value)
        with pytest.raises(EnqueuedTaskError):
            cdc_tasks.enqueue(connection, "shop.send", object())
        with pytest.raises(EnqueuedTaskError) as caught:
            cdc_tasks.enqueue(connection, "shop.send", "x" * 8_000_001)
        assert caught.value.code == "enqueued_too_large"
        connection.autocommit = True
        with pytest.raises(MarkError) as in_autocommit:
            cdc_tasks.enqueue(connection, "shop.send")
        assert in_autocommit.value.code == "mark_in_autocommit"


def test_a_test_sees_what_is_enqueued_although_its_transaction_is_rolled_back(database: Database) -> None:
    with closing(psycopg2.connect(database.url)) as connection, enqueued_tasks() as found:
        task_id = cdc_tasks.enqueue(
            connection, "shop.send", 1, kwargs={"a": 2}, key=("orders", 3), countdown=4
        )
        connection.rollback()
    (seen,) = found
    assert (seen.task, seen.id, seen.args, seen.kwargs) == ("shop.send", task_id, [1], {"a": 2})
    assert (seen.key, seen.options) == (["orders", 3], {"countdown": 4})
    with closing(psycopg2.connect(database.url)) as connection:
        cdc_tasks.enqueue(connection, "shop.send", 5)
    assert len(found) == 1


def test_a_refused_task_is_sent_once_it_is_accepted(
    database: Database, broker: Broker, accepting: Router
) -> None:
    with running(make_listener(database, broker, accepting), database):
        _in_transaction(
            database,
            lambda connection: cdc_tasks.enqueue(
                connection, "mail.send", 1, kwargs={"to": 2}, task_id="mine", key=("mails", 3), queue="mail"
            ),
            lambda connection: _say(connection, ['{"enqueue": {"task": "mail.send", "args": 5}}']),
        )
        wait_until(lambda: len(_parked(broker, database)) == 2, what="it to be parked", timeout=30)
    app = celery_app(broker.url)
    refused, senseless = sorted(_parked(broker, database), key=lambda each: each.logged is not None)
    assert isinstance(fire(refused, accepting, app), CDCError)
    accepting.accept("mail.send")
    assert isinstance(fire(senseless, accepting, app), CDCError)
    call = fire(refused, accepting, app)
    assert isinstance(call, Call)
    assert send(app, refused, call) is None
    (message,) = messages(broker.client, "mail")
    assert (message["headers"]["id"], message["body"][:2]) == ("mine", [[1], {"to": 2}])
    assert message["headers"][KEY_HEADER] == "mails:3"


def test_on_rabbitmq_too(
    database: Database, broker: Broker, accepting: Router, rabbitmq_server: RabbitMQServer
) -> None:
    queue = f"queue-{database.name}"
    monitor = PostgresWALMonitor(database.url, slot=database.name, publication=database.name, routes=())
    with (
        kombu_publisher(rabbitmq_server.url, broker, queue) as publisher,
        running(Listener(monitor, accepting, publisher), database),
    ):
        _in_transaction(
            database,
            _task(1, queue=queue, task_id="mine", headers={"tenant": 7}, kwargs={"name": "Ä"}),
            _task(2, queue=queue, shadow="other"),
        )
        found: list[dict[str, Any]] = []
        wait_until(
            lambda: found.extend(_drained(rabbitmq_server, queue)) or len(found) == 2, what="the tasks"
        )
    assert [each["body"][:2] for each in found] == [[[1], {"name": "Ä"}], [[2], {}]]
    headers = [each["application_headers"] for each in found]
    assert headers[0]["id"] == found[0]["correlation_id"] == "mine"
    assert (headers[0]["tenant"], headers[1]["shadow"]) == (7, "other")


def test_what_rabbitmq_has_no_place_for_is_parked_and_too_many_make_the_listener_wait(
    database: Database, broker: Broker, accepting: Router, rabbitmq_server: RabbitMQServer
) -> None:
    queue, taken = f"queue-{database.name}", f"taken-{database.name}"
    monitor = PostgresWALMonitor(database.url, slot=database.name, publication=database.name, routes=())
    with (
        open_channel(rabbitmq_server) as channel,
        kombu_publisher(rabbitmq_server.url, broker, queue, max_parked=3) as publisher,
        running(Listener(monitor, accepting, publisher), database),
    ):
        channel.queue_declare(taken, exclusive=True)
        _in_transaction(
            database,
            _task(1, queue=queue),
            _task(2, queue=None, exchange="nowhere", routing_key="x"),
            _task(3, queue=None, exchange="amq.direct", routing_key="nobody"),
            _task(4, queue=taken),
        )
        _in_transaction(database, _task(5, queue=queue))
        found: list[dict[str, Any]] = []
        wait_until(
            lambda: found.extend(_drained(rabbitmq_server, queue)) or len(found) == 2, what="the tasks"
        )
        _in_transaction(database, _task(6, queue=None, exchange="elsewhere", routing_key="x"))
        wait_until(lambda: broker.cache.get("cdc:test:paused"), what="the listener to wait")
        _in_transaction(database, _task(7, queue=queue))
        pause = json.loads(broker.cache.get("cdc:test:paused"))
        parked = list(read_parked(broker.cache, "cdc:test:parked"))
        broker.cache.hdel("cdc:test:parked", *(each.id for each in parked))
        wait_until(
            lambda: found.extend(_drained(rabbitmq_server, queue)) or len(found) == 3, what="the last task"
        )
    assert [each["body"][0] for each in found] == [[1], [5], [7]]
    assert sorted(each.arguments[0] for each in parked if each.arguments) == [2, 3, 4, 6]
    assert (pause["setting"], pause["longest_queue"]) == ("CDC_MAX_PARKED", 4)


def test_on_rabbitmq_a_trace_goes_with_the_message_beside_the_context(
    database: Database, broker: Broker, accepting: Router, rabbitmq_server: RabbitMQServer
) -> None:
    queue = f"queue-{database.name}"
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    said = {"traceparent": parent, "tracestate": "a=b", "baggage": "tenant=7", "user_id": 7}
    monitor = PostgresWALMonitor(database.url, slot=database.name, publication=database.name, routes=())
    with (
        kombu_publisher(rabbitmq_server.url, broker, queue, spans=Spans()) as publisher,
        running(Listener(monitor, accepting, publisher), database),
    ):
        _in_transaction(database, _task(1, queue=queue))
        _in_transaction(
            database,
            lambda connection: cdc_tasks.context(connection, **said),
            _task(2, queue=queue),
        )
        found: list[dict[str, Any]] = []
        wait_until(
            lambda: found.extend(_drained(rabbitmq_server, queue)) or len(found) == 2, what="the tasks"
        )
    plain, traced = (each["application_headers"] for each in found)
    assert not plain.keys() & {"cdc_context", "traceparent", "cdc-0trace"}
    assert traced["cdc_context"] == said
    assert {name: traced[name] for name in ("traceparent", "tracestate", "baggage")} == {
        name: said[name] for name in ("traceparent", "tracestate", "baggage")
    }  # no provider: the parent's own


def _drained(server: RabbitMQServer, queue: str) -> list[dict[str, Any]]:
    try:
        return drain(server, queue)
    except (
        amqp.NotFound,
        amqp.exceptions.InternalError,
    ):  # the publisher has not made it yet, or is making it
        return []


# --- MySQL and MariaDB: a row of cdc_tasks_marks ---------------------------------------------------------


@pytest.fixture(params=["mariadb_database", "mysql_database"])
def binlog(request: pytest.FixtureRequest) -> MySQLDatabase:
    """A database with the tables of the marks and of the rows."""
    found: MySQLDatabase = request.getfixturevalue(request.param)
    found.execute(CREATE_MARKS, "CREATE TABLE `rows` (id int PRIMARY KEY)")
    return found


@contextmanager
def _reading(
    database: MySQLDatabase,
    broker: Broker,
    *,
    batch_size: int,
    max_queue: int | None = None,
    spans: Spans | None = None,
) -> Iterator[None]:
    router = BinlogRouter()
    router.register(database.name, "*", EventType.INSERT, "shop.row", queue="shop", args=["id"])
    router.accept("shop.*")
    monitor = BinlogMonitor(
        database.url, name=database.name, routes=router.routes, from_start=False, batch_size=batch_size
    )
    publisher = RedisPublisher(celery_app(broker.url), name=database.name, max_queue=max_queue, spans=spans)
    listener = Listener(monitor, router, publisher)
    with capture_logs() as logs, in_background(listener.run) as run:
        wait_until(
            lambda: run.done() or any(line["event"] == "streaming" for line in logs), what="the listener"
        )
        try:
            yield
        finally:
            listener.stop()
            run.result(at_most(60))


def test_tasks_come_out_of_a_binlog_once_at_their_places_over_a_restart(
    binlog: MySQLDatabase, broker: Broker
) -> None:
    row = "INSERT INTO `rows` VALUES ({})"
    mark = 'INSERT INTO cdc_tasks_marks VALUES (UUID(), \'{"enqueue": {"task": "%s", "args": [%d]}}\')'
    with (
        _reading(binlog, broker, batch_size=1, max_queue=1),
        closing(binlog.connect(autocommit=False)) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(row.format(1))
        _task(1, task_id="mine", key=("orders", 7))(connection)
        cursor.execute("SAVEPOINT early")
        cursor.execute(row.format(90))
        _task(90)(connection)
        cursor.execute("ROLLBACK TO early")
        with cdc_tasks.muted(connection):
            cursor.execute(row.format(91))
            _task("Ä ☺", 2**70)(connection)
        cursor.execute(row.format(2))
        connection.commit()
        _task(92)(connection)
        connection.rollback()
        _task(93)(connection)  # and nothing else
        connection.commit()
        assert binlog.fetch("SELECT count(*) FROM cdc_tasks_marks") == [(0,)]
        _arrived(broker, 1)  # the queue is full: the listener waits in the middle of the transaction
    with _reading(binlog, broker, batch_size=1000):
        broker.client.rename("shop", "seen")
        binlog.execute("BEGIN", mark % ("mail.send", 5), mark % ("shop.send", 6), row.format(3), "COMMIT")
        wait_until(lambda: _sent(broker, "celery"), what="the last task", timeout=60)
    sent = [*_sent(broker, "seen"), *_sent(broker)]
    assert sorted(sent, key=str) == sorted(
        [
            ("shop.row", [1]),
            ("shop.send", [1]),
            ("shop.send", ["Ä ☺", 2**70]),
            ("shop.row", [2]),
            ("shop.send", [93]),
            ("shop.row", [3]),
        ],
        key=str,
    )
    assert _sent(broker, "celery") == [("shop.send", [6])]
    parked = read_parked(broker.client, parked_key(f"cdc:{binlog.name}"))
    assert [(each.task, each.arguments) for each in parked] == [("mail.send", [5])]


def test_a_trace_goes_through_a_binlog_with_the_spans_commit_and_publish(
    binlog: MySQLDatabase, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exported))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    monkeypatch.setattr(tracing, "is_on", lambda: True)
    spans = Spans()
    with _reading(binlog, broker, batch_size=1000, spans=spans):
        with closing(binlog.connect(autocommit=False)) as connection:
            with provider.get_tracer("shop").start_as_current_span("POST /orders"):
                cdc_tasks.context(connection, user_id=7)
                with connection.cursor() as cursor:
                    cursor.execute("INSERT INTO `rows` VALUES (1)")
                _task(2)(connection)  # also says what the current span is
            connection.commit()
        _arrived(broker, 2)
        binlog.execute("INSERT INTO `rows` VALUES (3)")
        _arrived(broker, 3)
    names = {each.name: each for each in exported.get_finished_spans()}
    for child, parent in (("publish", "commit"), ("commit", "POST /orders")):
        above = names[child].parent
        assert above is not None
        assert above.span_id == names[parent].get_span_context().span_id
    first, second, third = (each["headers"] for each in messages(broker.client, "shop"))
    for headers in (first, second):
        _, trace_id, _, _ = headers["traceparent"].split("-")
        assert int(trace_id, 16) == names["POST /orders"].get_span_context().trace_id
        assert headers["cdc_context"]["user_id"] == 7
    assert not third.keys() & {"traceparent", "cdc_context"}


@pytest.mark.parametrize("level", ["REPEATABLE READ", "READ COMMITTED"])
def test_no_mark_waits_for_an_open_transaction_that_rolled_one_back(
    binlog: MySQLDatabase, level: str
) -> None:
    with (
        closing(binlog.connect(autocommit=False)) as first,
        closing(binlog.connect(autocommit=False)) as second,
        first.cursor() as in_first,
        second.cursor() as in_second,
    ):
        for cursor in (in_first, in_second):
            cursor.execute(f"SET SESSION TRANSACTION ISOLATION LEVEL {level}")
            cursor.execute("SET innodb_lock_wait_timeout = 1")
        in_first.execute("INSERT INTO `rows` VALUES (1)")
        in_first.execute("SAVEPOINT early")
        _task(1)(first)
        in_first.execute("SHOW WARNINGS")
        assert in_first.fetchall() == ()
        _task(2)(second)
        in_first.execute("ROLLBACK TO early")
        for number in range(20):  # in front of what was rolled back, and behind it
            _task(number)(second)
        _task(3)(first)
        second.commit()
        first.commit()


@pytest.mark.parametrize("engine", ["InnoDB", ""])
def test_check_says_which_table_of_marks_makes_others_wait(binlog: MySQLDatabase, engine: str) -> None:
    if engine:
        binlog.execute(f"ALTER TABLE cdc_tasks_marks ENGINE = {engine}")
    found = check_mysql(
        binlog.url, name=binlog.name, server_id=7, routes=(), checkpoint=None, needs_marks=True
    )
    (marks,) = (each for each in found if each.code == "marks")
    if engine and not binlog.is_mariadb:
        assert marks.state is State.WARNING
        assert marks.hint == f"ALTER TABLE `{binlog.name}`.cdc_tasks_marks ENGINE = BLACKHOLE;"
        binlog.execute(marks.hint)
    else:
        assert marks.state is State.OK
