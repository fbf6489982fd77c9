"""Malformed messages: the worker goes on, and keeps each as it came."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from base64 import b64decode, b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.waiting import at_most, wait_until
from harness.worker import Worker, unacknowledged
from tests.integration.tasks.test_rabbitmq import sender_of

if TYPE_CHECKING:
    from celery import Celery

    from harness.machine_servers import RabbitMQServer
    from tests.support.helpdesk import HelpDesk


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
            "delivery_info": {"exchange": "cdc_bulk", "routing_key": "cdc_bulk"},
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
    "a delivery info that is text": ("properties.delivery_info", "cdc_bulk"),
    "an exchange that is a list": ("properties.delivery_info.exchange", ["cdc_bulk"]),
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
    environment = {**helpdesk.environment, "CDC_TASK_MODULES": "tests.support.tasks.killed"}
    with Worker(environment, "-Q", "cdc_bulk", concurrency=1) as worker:
        for number, (name, message) in enumerate(messages.items()):
            client.lpush("cdc_bulk", message)
            helpdesk.send("killed.note", number, queue="cdc_bulk")
            wait_until(
                lambda: cache.hexists("noted", str(number)) or worker.process.poll() is not None,  # noqa: B023
                timeout=60,
                what=f"the task behind {name}",
            )
            assert worker.process.poll() is None, f"{name} ended the worker:\n{worker.log[-3000:]}"
        wait_until(lambda: not unacknowledged(client), timeout=60, what="all to be acknowledged")
    kept = [json.loads(each) for each in cache.hvals("cdc:dead-letters")]
    raws = {b64decode(each["raw"]) for each in kept if each["raw"] is not None}
    missing = [name for name, message in messages.items() if not _is_kept(message, raws)]
    assert missing == []
    assert client.llen("cdc_bulk") == 0


def _is_kept(message: str | bytes, raws: set[bytes]) -> bool:
    """Return it as it came, or headers and body if kombu had already parsed it."""
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
    environment = _on_rabbitmq(helpdesk, rabbitmq_server)
    cache = helpdesk.broker.cache
    with sender_of(environment) as sender, Worker(environment, "-Q", "cdc_bulk", concurrency=1) as worker:
        _publish(sender, body)
        sender.send_task("killed.note", [1], queue="cdc_bulk")
        wait_until(
            lambda: cache.hexists("noted", "1") or worker.process.poll() is not None,
            timeout=60,
            what="the task behind it",
        )
        wait_until(lambda: cache.hlen("cdc:dead-letters"), timeout=60, what="what is no task to be kept")
        assert worker.process.poll() is None
        _wait_until_empty(
            rabbitmq_server
        )  # otherwise the next test's worker gets what this one has not acknowledged
    (letter,) = [json.loads(each) for each in cache.hvals("cdc:dead-letters")]
    assert letter["task"] == "malformed message"
    assert letter["raw"]


def test_a_message_that_comes_again_on_rabbitmq_leaves_one_letter(
    helpdesk: HelpDesk, rabbitmq_server: RabbitMQServer
) -> None:
    """RabbitMQ counts in a header how often a quorum queue has delivered it."""
    environment = _on_rabbitmq(helpdesk, rabbitmq_server)
    with sender_of(environment) as sender:
        for body in (b"[[1], {}]", b"[[2], {}]"):
            _publish(sender, body)
    _take_one_and_die(environment)
    with Worker(environment, "-Q", "cdc_bulk", concurrency=1):
        _wait_until_empty(rabbitmq_server)
    assert len(_letters(helpdesk)) == 2


@pytest.mark.parametrize(
    "change",
    [
        ("body", _encoded([[1], {}])),  # noticed by the consumer
        ("properties.priority", "high"),  # by the transport
        ("properties.delivery_info.exchange", ["cdc_bulk"]),
        ("headers", None),
        ("headers", [1]),
        ("body", "invalid \udcff UTF-8"),
        None,  # it cannot be parsed
    ],
)
def test_a_message_that_comes_again_on_redis_leaves_one_letter(
    helpdesk: HelpDesk, change: tuple[str, Any] | None
) -> None:
    """A dead worker's message gets a mark when it goes back."""
    message = "nonsense" if change is None else _changed(_good(), *change).replace("\\udcff", "\udcff")
    content = message.encode(errors="surrogateescape")
    environment = {
        **helpdesk.environment,
        "CDC_TASK_MODULES": "tests.support.tasks.killed",
        "CELERY_CONFIG_MODULE": "tests.support.celery_settings.short_lease",
    }
    client = helpdesk.broker.client
    client.lpush("cdc_bulk", content)
    _take_one_and_die(environment)
    (first,) = _letters(helpdesk)
    assert unacknowledged(client)
    with Worker(environment, "-Q", "cdc_bulk", concurrency=1):
        wait_until(
            lambda: not unacknowledged(client) and not client.llen("cdc_bulk"),
            timeout=60,
            what="it to be acknowledged",
        )
    (letter,) = _letters(helpdesk)
    assert letter["id"] == first["id"]
    assert not b64decode(letter["raw"]).startswith(b"[")  # without the address that the transport appends


def _on_rabbitmq(helpdesk: HelpDesk, server: RabbitMQServer) -> dict[str, str]:
    return {
        **helpdesk.environment,
        "CELERY_BROKER_URL": server.url,
        "CDC_TASK_MODULES": "tests.support.tasks.killed",
    }


def _publish(sender: Celery, body: bytes) -> None:
    with sender.producer_pool.acquire(block=True) as producer:
        for queue in sender.amqp.queues.values():
            if queue.name == "cdc_bulk":
                producer.maybe_declare(queue)
        producer.publish(
            body,
            exchange="cdc_tasks",
            routing_key="cdc_bulk",
            content_type="application/json",
            content_encoding="utf-8",
            headers={"task": "killed.note", "id": "an-id", "timelimit": [None, None]},
        )


def _take_one_and_die(environment: dict[str, str]) -> None:
    modules = f"{environment['CDC_TASK_MODULES']},tests.support.tasks.dies_before_acknowledging"
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "cdc_tasks",
            "worker",
            "-c",
            "1",
            "-Q",
            "cdc_bulk",
            "--without-mingle",
        ],
        cwd=Path(__file__).parents[3],
        env={**os.environ, **environment, "CDC_TASK_MODULES": modules},
        start_new_session=True,
        timeout=at_most(30),
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL


def _wait_until_empty(server: RabbitMQServer) -> None:
    def messages() -> str:
        return server.control("list_queues", "name", "messages")

    wait_until(lambda: "bulk\t0" in messages(), timeout=60, what="all to be acknowledged", every=0.5)


def _letters(helpdesk: HelpDesk) -> list[dict[str, Any]]:
    return [json.loads(each) for each in helpdesk.broker.cache.hvals("cdc:dead-letters")]
