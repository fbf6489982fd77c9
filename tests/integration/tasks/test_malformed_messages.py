"""Whatever somebody writes to the broker: the worker goes on, and what is no task's message is kept as it came."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.tasks.test_rabbitmq import sender_of
from tests.support.waiting import wait_until
from tests.support.worker import Worker, held

if TYPE_CHECKING:
    from tests.support.helpdesk import HelpDesk
    from tests.support.servers import RabbitMQServer


def _good() -> dict[str, Any]:
    """Return a message as kombu puts it into Redis."""
    body = b64encode(
        json.dumps([[1], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]).encode()
    )
    return {
        "body": body.decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": "killed.note",
            "id": "an-id",
            "retries": 0,
            "timelimit": [None, None],
        },
        "properties": {
            "correlation_id": "an-id",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "bulk", "routing_key": "bulk"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": "a-tag",
        },
    }


def _encoded(body: Any) -> str:
    return b64encode(json.dumps(body).encode()).decode()


def _deep(levels: int) -> str:
    return "[" * levels + "]" * levels


_WHOLE = {  # what takes the place of the whole message
    "no json": "nonsense",
    "empty": "",
    "bytes": b"\xff\xfe\x00",
    "null": "null",
    "a list": "[]",
    "a number": "7",
    "deeply nested": _deep(900),
    "more deeply nested": _deep(50_000),
}
_CHANGED = {  # what takes the place of a part: a path, and the value there; None: taken away
    "no body": ("body", None),
    "a body that is no text": ("body", {"a": 1}),
    "a body that is not base64": ("body", "%%% no base64 %%%"),
    "a body with wrong padding": ("body", "abcde"),
    "a body that is no JSON": ("body", b64encode(b"nonsense").decode()),
    "a body that is not UTF-8": ("body", b64encode(b"\xff\xff").decode()),
    "a body of two parts": ("body", _encoded([[1], {}])),
    "a body of four parts": ("body", _encoded([[1], {}, {}, {}])),
    "a body that is a mapping": ("body", _encoded({"a": 1})),
    "a body that is null": ("body", _encoded(None)),
    "arguments that are text": ("body", _encoded(["text", {}, {}])),
    "keywords that are a list": ("body", _encoded([[1], [1], {}])),
    "an embedded part that is a list": ("body", _encoded([[1], {}, [1]])),
    "a deeply nested body": ("body", b64encode(_deep(100_000).encode()).decode()),
    "no properties": ("properties", None),
    "properties that are a list": ("properties", []),
    "no delivery tag": ("properties.delivery_tag", None),
    "a delivery tag that is a number": ("properties.delivery_tag", 7),
    "no delivery info": ("properties.delivery_info", None),
    "a delivery info that is text": ("properties.delivery_info", "bulk"),
    "an exchange that is a list": ("properties.delivery_info.exchange", ["bulk"]),
    "an unknown body encoding": ("properties.body_encoding", "rot13"),
    "a priority that is text": ("properties.priority", "high"),
    "no headers": ("headers", None),
    "headers that are a list": ("headers", [1]),
    "a task that is a number": ("headers.task", 7),
    "no id": ("headers.id", None),
    "an id that is a list": ("headers.id", ["a"]),
    "a time limit that is text": ("headers.timelimit", "ten"),
    "time limits that are text": ("headers.timelimit", ["ten", "twenty"]),
    "one time limit": ("headers.timelimit", [10]),
    "retries that are text": ("headers.retries", "many"),
    "an eta that is no time": ("headers.eta", "tomorrow"),
    "an eta that is a number": ("headers.eta", 7),
    "an expiry that is no time": ("headers.expires", "never"),
    "stamps that are a list": ("headers.stamps", [1]),
    "a content type that nobody takes": ("content-type", "application/x-python-serialize"),
    "a content type that is a list": ("content-type", ["application/json"]),
    "an unknown content encoding": ("content-encoding", "klingon"),
}


def _changed(message: dict[str, Any], path: str, value: Any) -> str:
    *way, last = path.split(".")
    place = message
    for step in way:
        place = place[step]
    if value is None:
        place.pop(last)
    else:
        place[last] = value
    return json.dumps(message)


def test_a_worker_lives_on_and_keeps_what_is_no_task(helpdesk: HelpDesk) -> None:
    client, cache = helpdesk.broker.client, helpdesk.broker.cache
    messages = {**_WHOLE, **{name: _changed(_good(), *change) for name, change in _CHANGED.items()}}
    environment = {**helpdesk.environment, "CDC_TASK_MODULES": "tests.support.killed_tasks"}
    with Worker(environment, "-Q", "bulk", concurrency=1) as worker:
        for number, (name, message) in enumerate(messages.items()):
            client.lpush("bulk", message)
            helpdesk.send("killed.note", number, queue="bulk")
            wait_until(
                lambda: cache.hexists("noted", str(number)) or worker.process.poll() is not None,  # noqa: B023
                timeout=60,
                what=f"the task behind {name}",
            )
            assert worker.process.poll() is None, f"{name} ended the worker:\n{worker.log[-3000:]}"
        wait_until(lambda: not held(client), timeout=60, what="all to be acknowledged")
    kept = [json.loads(each) for each in cache.hvals("cdc:dead-letters")]
    raws = {b64decode(each["raw"]) for each in kept if each["raw"] is not None}
    missing = [name for name, message in messages.items() if not _is_kept(message, raws)]
    assert missing == []
    assert client.llen("bulk") == 0


def _is_kept(message: str | bytes, raws: set[bytes]) -> bool:
    """As it came, or, where kombu had taken it apart already, headers and body."""
    content = message.encode() if isinstance(message, str) else message
    if content in raws:
        return True
    try:
        headers = json.loads(content)["headers"]
        return any(json.loads(raw)["headers"] == headers for raw in raws if raw.startswith(b'{"headers"'))
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


@pytest.mark.parametrize("body", [b"nonsense", b"\xff\xfe", b"[[1], {}]", b"null", b""])
def test_the_same_on_rabbitmq(helpdesk: HelpDesk, rabbitmq_server: RabbitMQServer, body: bytes) -> None:
    environment = {
        **helpdesk.environment,
        "CELERY_BROKER_URL": rabbitmq_server.url,
        "CDC_TASK_MODULES": "tests.support.killed_tasks",
    }
    cache = helpdesk.broker.cache
    with sender_of(environment) as sender, Worker(environment, "-Q", "bulk", concurrency=1) as worker:
        with sender.producer_pool.acquire(block=True) as producer:
            producer.publish(
                body,
                exchange="cdc_tasks",
                routing_key="bulk",
                content_type="application/json",
                content_encoding="utf-8",
                headers={"task": "killed.note", "id": "an-id", "timelimit": [None, None]},
            )
        sender.send_task("killed.note", [1], queue="bulk")
        wait_until(
            lambda: cache.hexists("noted", "1") or worker.process.poll() is not None,
            timeout=60,
            what="the task behind it",
        )
        wait_until(lambda: cache.hlen("cdc:dead-letters"), timeout=60, what="what is no task to be kept")
        assert worker.process.poll() is None
    (letter,) = [json.loads(each) for each in cache.hvals("cdc:dead-letters")]
    assert letter["task"] == "malformed message"
    assert letter["raw"]
