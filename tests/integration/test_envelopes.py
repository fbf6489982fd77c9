"""The messages that the listener makes are those that Celery makes."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from kombu import Exchange, Queue
from kombu.common import Broadcast

from cdc_tasks.versions import installed
from listener.core.publisher import BrokerError
from listener.publish.redis.publisher import RedisPublisher
from listener.publish.task_message import EnvelopeError
from tests.support.publishing import (
    celery_app,
    change,
    fire,
    messages,
    pop_times,
    position,
    redis_publisher,
    router_to,
)

if TYPE_CHECKING:
    from celery import Celery

    from tests.conftest import Broker

pytestmark = pytest.mark.versions

_TOPIC = Exchange("things", type="topic")

_TO_ALL = {"task_routes": {"tests.*": {"queue": "all"}}}

_SETTINGS: dict[str, dict[str, Any]] = {
    "nothing set": {},
    "a queue by the task's name": {"task_routes": {"tests.*": {"queue": "chosen"}}},
    "a priority by the task's name": {"task_routes": {"tests.*": {"priority": 7}}},
    "the highest priority": {"task_routes": {"tests.*": {"priority": 9, "queue": "chosen"}}},
    "priorities in other steps": {
        "task_routes": {"tests.*": {"priority": 5}},
        "broker_transport_options": {"priority_steps": [0, 5], "sep": ":"},
    },
    "a default priority": {"task_queue_max_priority": 9, "task_default_priority": 6},
    "a prefix before all keys": {"broker_transport_options": {"global_keyprefix": "{helpdesk}:"}},
    "a topic exchange": {
        "task_queues": [Queue("chosen", _TOPIC, routing_key="ticket.#")],
        "task_routes": {"tests.*": {"exchange": "things", "routing_key": "ticket.new"}},
    },
    "two queues of one exchange": {
        "task_queues": [Queue(name, _TOPIC, routing_key="ticket.#") for name in ("first", "second")],
        "task_routes": {"tests.*": {"exchange": "things", "routing_key": "ticket.new"}},
    },
    "messages that need not outlive the broker": {"task_default_delivery_mode": "transient"},
    "messages that go away": {"task_routes": {"tests.*": {"expiration": 3600}}},
    "results": {"result_backend": "cache+memory://"},
    "an event for each task that is sent": {"task_send_sent_event": True},
    "another time zone": {"timezone": "Asia/Kolkata", "enable_utc": True},
}


def _without_tag(message: dict[str, Any]) -> dict[str, Any]:
    assert message["properties"].pop("delivery_tag")
    return message


def _assert_equal_to_celerys(
    app: Celery, broker: Broker, *, task: str = "tests.task", queue: str | None = None, **sending: Any
) -> list[str]:
    """Publish a change in both ways, and return the queues in which the two messages are."""
    router = router_to(task, queue=queue, **sending)
    publisher = RedisPublisher(app, name="test")
    publisher.attach("7f00")
    row = {"title": 'A 100 % "quoted" Ünïcode\n\ttitle', "big": 2**70, "price": "12.50", "nothing": None}
    event = change(1, **row)
    publisher.publish(fire(router, [event]), checkpoint=event.position)
    publisher.close()
    with app.connection_for_write() as connection, connection.channel() as channel:
        keys = [key.decode() for key in broker.client.scan_iter() if broker.client.type(key) == b"list"]
        assert keys
        assert channel.global_keyprefix in keys[0]
    task_id = f"{event.id}-{router.routes[0].id}"
    options = {**({"queue": queue} if queue else {}), **sending}
    with app.connection_for_write() as connection:
        for each in app.amqp.queues.values():
            each(connection.default_channel).declare()
        send: Any = app.tasks[task].apply_async if task in app.tasks else partial(app.send_task, task)
        send([event.to_message()], task_id=task_id, connection=connection, **options)
    for key in keys:
        ours, celerys = map(_without_tag, messages(broker.client, key))
        celerys["headers"].update(argsrepr="<public.tickets insert 0/1:0>", kwargsrepr="{}")
        _assert_times_are_alike(ours["headers"], celerys["headers"])
        assert ours == celerys
        assert ours["body"][0] == [event.to_message()]
        assert ours["headers"]["id"] == ours["properties"]["correlation_id"] == task_id
    return keys


def _task(change: Any) -> Any:
    return change


def _assert_times_are_alike(ours: dict[str, Any], celerys: dict[str, Any]) -> None:
    """Ours was sent first, in this process: by the same clock, and so its times are a little earlier."""
    for mine, theirs in zip(pop_times(ours), pop_times(celerys), strict=True):
        assert mine[1] == theirs[1]
        assert theirs[0] - timedelta(minutes=5) < mine[0] <= theirs[0]


@pytest.mark.parametrize("case", _SETTINGS)
def test_a_message_is_the_one_that_celery_sends_with(case: str, broker: Broker) -> None:
    _assert_equal_to_celerys(celery_app(broker.url, **_SETTINGS[case]), broker)


def test_a_message_is_the_one_that_celery_sends_with_the_projects_own_settings(any_broker: Broker) -> None:
    app = celery_app(any_broker.url)
    app.config_from_object("cdc_tasks.config.celery")
    app.conf.broker_url = any_broker.url
    assert _assert_equal_to_celerys(app, any_broker) == ["celery"]
    any_broker.client.flushall()
    assert _assert_equal_to_celerys(app, any_broker, queue="cdc_bulk") == ["cdc_bulk"]


def test_the_routes_queue_goes_before_celerys(broker: Broker) -> None:
    app = celery_app(broker.url, task_routes={"tests.*": {"queue": "celerys", "priority": 3}})
    assert _assert_equal_to_celerys(app, broker, queue="ours") == ["ours\x06\x163"]


@pytest.mark.parametrize(
    "sending",
    [
        {"countdown": 90},
        {"countdown": 0.5, "expires": 3600},
        {"expires": 600.0},
        {"priority": 4},
        {"priority": 9, "countdown": 3600, "expires": 7200, "queue": "ours"},
        {"countdown": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("settings", [{}, {"timezone": "Asia/Kolkata", "enable_utc": False}], ids=str)
def test_a_route_says_when_a_task_is_due_and_expires_as_celerys_own_call_does(
    settings: dict[str, Any], sending: dict[str, Any], broker: Broker
) -> None:
    (key,) = _assert_equal_to_celerys(celery_app(broker.url, **settings), broker, **sending)
    priority, queue = sending.get("priority", 0), sending.get("queue", "celery")
    step = max(each for each in (0, 3, 6, 9) if each <= priority)
    assert key == (f"{queue}\x06\x16{step}" if step else queue)


@pytest.mark.filterwarnings("ignore::celery.exceptions.CDeprecationWarning")  # 5.7 warns of queue=
@pytest.mark.parametrize("sending", [{}, {"priority": 3, "expires": 60, "queue": "others"}], ids=str)
def test_a_task_of_the_app_keeps_its_own_options_unless_the_route_has_others(
    sending: dict[str, Any], broker: Broker
) -> None:
    app = celery_app(broker.url)
    own = {"queue": "mail", "priority": 6, "expires": 30, "time_limit": 7, "ignore_result": True}
    app.task(name="tests.own", shared=False, **own)(_task)
    (key,) = _assert_equal_to_celerys(app, broker, task="tests.own", **sending)
    assert key == ("others\x06\x163" if sending else "mail\x06\x166")


def test_a_tasks_keyword_arguments_are_in_the_message_as_celery_has_them(broker: Broker) -> None:
    named: dict[str, Any] = {"a": 'x "%s"', "b": [2**70]}
    app, router = celery_app(broker.url), router_to(args=lambda _: [1.10], kwargs=lambda _: named)
    router.register("public", "tickets", "insert", "tests.named", kwargs={"ticket": "id"}, countdown=5)
    with redis_publisher(broker.url) as publisher:
        publisher.publish(fire(router, [change(1)]), checkpoint=position(1))
    ours, other = messages(broker.client, "celery")
    assert other["body"][:2] == [[], {"ticket": 1}]
    app.send_task("tests.task", [1.10], named, task_id=ours["headers"]["id"])
    celerys = messages(broker.client, "celery")[-1]
    celerys["headers"].update(argsrepr="<public.tickets insert 0/1:0>", kwargsrepr="{}")
    for each in (ours, celerys):
        _without_tag(each)["properties"].pop("reply_to")
        each["headers"].pop("origin")
    assert ours == celerys


def test_a_message_goes_to_the_database_that_the_url_names(broker: Broker) -> None:
    app = celery_app(broker.server.url_of(5))
    publisher = RedisPublisher(app, name="test")
    publisher.attach("7f00")
    publisher.publish(fire(router_to(), [change(1)]), checkpoint=position(1))
    publisher.close()
    assert not broker.client.keys()
    broker.client.select(5)
    assert broker.client.llen("celery") == 1


@pytest.mark.skipif(installed("kombu") < (5, 7), reason="kombu before 5.7 deletes no queue on Redis")
def test_a_queue_that_expires_is_kept_for_as_long_as_celery_would_keep_it(broker: Broker) -> None:
    app = celery_app(broker.url, task_queues=[Queue("celery", expires=600)], task_default_queue="celery")
    _assert_equal_to_celerys(app, broker)
    assert 300_000 < broker.client.pttl("celery") <= 600_000


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"task_serializer": "pickle", "accept_content": ["pickle"]}, "task_serializer"),
        ({"task_serializer": "yaml"}, "task_serializer"),
        ({"task_routes": {"tests.*": {"serializer": "yaml"}}}, "Leave serializer out of task_routes"),
        ({"task_compression": "gzip"}, "task_compression"),
        ({"broker_transport_options": {"body_encoding": None}}, "body_encoding"),
        ({"task_protocol": 1}, "task_protocol"),
        ({"task_routes": {"tests.*": {"expires": 60}}}, "expires"),
        ({"task_routes": {"tests.*": {"countdown": 60}}}, "countdown"),
        ({"task_routes": {"tests.*": {"exchange": "nobody", "exchange_type": "topic"}}}, "task_queues"),
        ({"task_queues": [Queue("all", Exchange("all", type="fanout"))], **_TO_ALL}, "task_routes"),
        ({"task_queues": [Broadcast("all")], **_TO_ALL}, "task_routes"),
        ({"task_create_missing_queues": False, "task_routes": {"tests.*": {"queue": "none"}}}, "task_queues"),
    ],
)
def test_a_kind_of_message_that_is_not_made_is_an_error_with_the_setting_to_mend(
    settings: dict[str, Any], hint: str, broker: Broker
) -> None:
    app = celery_app(broker.url)
    app.conf.update(settings)
    publisher = RedisPublisher(app, name="test")
    publisher.attach("7f00")
    with pytest.raises(EnvelopeError) as raised:
        publisher.publish(fire(router_to(), [change(1)]), checkpoint=position(1))
    publisher.close()
    assert hint in str(raised.value)
    assert not any(broker.client.type(key) == b"list" for key in broker.client.scan_iter())


def test_making_a_message_sends_nothing_and_tells_nobody(broker: Broker) -> None:
    app = celery_app(broker.url, result_backend=broker.cache_url, task_send_sent_event=True)
    with broker.client.monitor() as monitor:
        publisher = RedisPublisher(app, name="test")
        publisher.attach("7f00")
        publisher.publish(fire(router_to(), [change(1)]), checkpoint=position(1))
        publisher.close()
        broker.client.echo("end")
        seen = []
        for each in monitor.listen():
            seen.append(each["command"])
            if "end" in each["command"]:
                break
    assert sum("LPUSH" in command for command in seen) == 1
    assert not any("SUBSCRIBE" in command or "PUBLISH" in command for command in seen)
    assert not any("cdc-0" in command for command in seen)


def test_something_else_in_the_queues_place_is_an_error_before_anything_is_written(broker: Broker) -> None:
    broker.client.hset("celery\x06\x163", "not", "a queue")
    app = celery_app(broker.url, task_routes={"tests.*": {"priority": 3}})
    publisher = RedisPublisher(app, name="test")
    publisher.attach("7f00")
    with pytest.raises(BrokerError, match=r"WRONGTYPE") as raised:
        publisher.publish(fire(router_to(), [change(1)]), checkpoint=position(1))
    publisher.close()
    assert "redis-cli RENAME" in (raised.value.hint or "")
    assert not broker.client.exists("cdc:test:checkpoint")
