"""What the listener sends to the tasks of somebody else's app is what `apply_async` of these tasks sends."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from kombu import Connection, Exchange, Queue

from cdc_tasks import install
from listener.publish.check_broker import check_broker
from listener.publish.redis.publisher import RedisPublisher
from listener.publish.task_message import EnvelopeError
from tests.support.publishing import SOURCE, change, fire, pop_times, router_to
from tests.support.rabbitmq import publisher_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.machine_servers import RabbitMQServer
    from tests.conftest import Broker

pytestmark = [
    pytest.mark.versions,
    # Celery 5.7 warns of queue= and the like at a task.
    pytest.mark.filterwarnings("ignore::celery.exceptions.CDeprecationWarning"),
]


def _by_task(name: str, _args: Any, _kwargs: Any, _options: Any, task: Any = None, **_: Any) -> Any:
    """Route by an attribute of the task, as a function in task_routes may."""
    return {"queue": task.chosen} if name.startswith("shop.") else None


def _task(row: int) -> int:
    return row


@dataclass(frozen=True, kw_only=True)
class Case:
    """Somebody's app: what its settings and its task say, given the name of a queue."""

    settings: Callable[[str], dict[str, Any]] = lambda _: {}
    task: Callable[[str], dict[str, Any]] = lambda _: {}
    transport: dict[str, Any] = field(default_factory=dict)  # of Redis
    has_install: bool = False


def _topic(queue: str) -> Exchange:
    return Exchange(f"exchange-{queue}", type="topic")


def _task_queues(queue: str) -> dict[str, Any]:
    return {
        "task_queues": [
            Queue(
                queue, _topic(queue), routing_key="mail.#", max_priority=9, durable=True
            ),  # on RabbitMQ x-max-priority
            Queue(f"other-{queue}", Exchange(f"direct-{queue}"), routing_key="other"),
        ],
        "task_default_queue": f"other-{queue}",
        "task_default_exchange": f"direct-{queue}",
        "task_default_routing_key": "other",
    }


CASES = {
    "a queue at the task": Case(task=lambda queue: {"queue": queue}),
    "exchange and routing key at the task": Case(
        settings=_task_queues,
        task=lambda queue: {"exchange": f"exchange-{queue}", "routing_key": "mail.new", "priority": 6},
    ),
    "exchange and routing key in task_routes": Case(
        settings=lambda queue: {
            **_task_queues(queue),
            "task_routes": {"shop.*": {"exchange": f"exchange-{queue}", "routing_key": "mail.new"}},
        }
    ),
    "a queue of task_queues by its name": Case(
        settings=lambda queue: {**_task_queues(queue), "task_routes": {"shop.task": {"queue": queue}}}
    ),
    "task_routes as a list": Case(
        settings=lambda queue: {
            "task_routes": ([("books.*", {"queue": "books"}), ("shop.*", {"queue": queue, "priority": 3})],)
        }
    ),
    "task_routes as a function of the task": Case(
        settings=lambda _: {"task_routes": (_by_task,)}, task=lambda queue: {"chosen": queue}
    ),
    "priorities in other steps": Case(
        settings=lambda queue: {"task_default_queue": queue, "task_default_priority": 4},
        transport={"priority_steps": [0, 4, 8], "sep": ":", "queue_order_strategy": "priority"},
    ),
    "a prefix before all keys": Case(
        settings=lambda queue: {"task_default_queue": queue}, transport={"global_keyprefix": "team:"}
    ),
    "each option of a task": Case(
        settings=lambda queue: {"task_default_queue": queue},
        task=lambda _: {
            "priority": 2,
            "expires": 60,
            "time_limit": 30,
            "soft_time_limit": 20,
            "ignore_result": True,
            "delivery_mode": 1,
        },
    ),
    "JSON for this task alone": Case(
        settings=lambda queue: {"task_default_queue": queue, "task_serializer": "pickle"},
        task=lambda _: {"serializer": "json"},
    ),
    "results are kept": Case(
        settings=lambda queue: {
            "task_default_queue": queue,
            "result_backend": "cache+memory://",
            "result_extended": True,
        }
    ),
    "no results": Case(
        settings=lambda queue: {"task_default_queue": queue, "task_ignore_result": True},
        task=lambda _: {"time_limit": 5},
    ),
    "our parts": Case(
        settings=lambda queue: {"task_default_queue": queue}, task=lambda _: {"priority": 3}, has_install=True
    ),
}


def _app(case: Case, url: str, queue: str) -> Celery:
    app = Celery("shop", broker=url, set_as_current=False)
    app.conf.update(case.settings(queue))
    if url.startswith("redis"):
        app.conf.broker_transport_options = case.transport
    if case.has_install:
        install(app)
    app.task(name="shop.task", shared=False, **case.task(queue))(_task)
    return app


@pytest.fixture(params=["redis", "rabbitmq"])
def url(request: pytest.FixtureRequest, broker: Broker) -> str:
    if request.param == "redis":
        return broker.url
    server: RabbitMQServer = request.getfixturevalue("rabbitmq_server")
    return server.url


def _publish(app: Celery, broker: Broker, url: str) -> str:
    """Publish a change to the task; return the task's id."""
    router, event = router_to("shop.task", events="insert", args=["id"]), change(1)
    if url.startswith("redis"):
        publisher = RedisPublisher(app, name="test")
        publisher.attach(SOURCE)
        try:
            publisher.publish(fire(router, [event]), checkpoint=event.position)
        finally:
            publisher.close()
    else:
        with publisher_of(app, broker) as publisher:
            publisher.publish(fire(router, [event]), checkpoint=event.position)
    return f"{event.id}-{router.routes[0].id}"


@pytest.mark.parametrize("case", CASES)
def test_a_message_is_the_one_that_the_task_sends(case: str, url: str, broker: Broker) -> None:
    queue = f"mail-{uuid.uuid4().hex[:8]}"
    app = _app(CASES[case], url, queue)
    with app.connection_for_write() as connection, connection.channel() as channel:
        for each in app.amqp.queues.values():  # as a worker does
            each(channel).declare()

        task_id = _publish(app, broker, url)
        app.tasks["shop.task"].apply_async([1], task_id=task_id, connection=connection)

    with Connection(url, transport_options=app.conf.broker_transport_options) as stock:
        bound = app.amqp.queues[queue](stock.default_channel)
        ours, theirs = (bound.get(no_ack=True, accept=["json"]) for _ in range(2))
        assert bound.get(no_ack=True) is None
    assert ours.decode() == theirs.decode()
    assert ours.headers["id"] == task_id
    theirs.headers.update(argsrepr="<public.tickets insert 0/1:0>", kwargsrepr="{}")
    times = zip(*(pop_times(each.headers) for each in (ours, theirs)), strict=True)
    assert all(mine[1] == other[1] and mine[0] <= other[0] for mine, other in times)
    for each in (ours, theirs):
        each.properties.pop("delivery_tag", None)
        each.delivery_info.pop("delivery_tag", None)
    assert ours.headers == theirs.headers
    assert ours.properties == theirs.properties
    for name in ("exchange", "routing_key", "priority"):
        assert ours.delivery_info.get(name) == theirs.delivery_info.get(name)


@pytest.mark.parametrize(
    ("settings", "task", "hint"),
    [
        ({"task_serializer": "pickle"}, {}, 'Set task_serializer = "json" in'),
        ({}, {"serializer": "yaml"}, "Leave serializer= out of the task"),
        ({"task_protocol": 1}, {}, "Leave task_protocol out of"),
        ({"task_compression": "gzip"}, {}, "Set task_compression = None in"),
        ({}, {"compression": "zlib"}, "Leave compression= out of the task"),
    ],
    ids=str,
)
def test_a_message_that_is_not_made_is_told_by_check_too(
    settings: dict[str, Any], task: dict[str, Any], hint: str, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CDC_APP", "shop")
    app = _app(Case(settings=lambda _: settings, task=lambda _: task), broker.url, "mail")
    with pytest.raises(EnvelopeError) as raised:
        _publish(app, broker, broker.url)

    error = raised.value
    assert error.code == "message_format"
    assert "shop.task" in error.message
    assert str(error.hint).startswith(hint)
    assert "celeryconfig.py" not in str(error.hint)
    routes = router_to("shop.task", events="insert", args=["id"]).routes
    (found,) = (each for each in check_broker(app, routes, durability="memory") if each.code == error.code)
    assert (found.found, found.hint, str(found.state)) == (error.message, error.hint, "problem")
