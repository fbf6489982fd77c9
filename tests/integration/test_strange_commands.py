"""Commands that no command line of this version gives: they end, and neither the listener nor the next one suffers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from listener.control.commands import CommandQueue
from listener.control.control import Control, ControlState
from listener.publish.redis.connection import RedisConnection
from tests.support.publishing import celery_app, redis_publisher, router_to

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Broker

_WAITING = "cdc:test:commands"


@pytest.fixture
def queue(broker: Broker) -> CommandQueue:
    return CommandQueue(RedisConnection.of_broker(celery_app(broker.url)), "test")


@pytest.fixture
def control(broker: Broker, queue: CommandQueue) -> Iterator[Control]:
    state = ControlState(RedisConnection.of_broker(celery_app(broker.url)), "test")
    with redis_publisher(broker.url) as publisher:
        control = Control(queue, state, publisher, router_to().routes)
        control.begin()
        yield control


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("pause", {}),
        ("pause", {"routes": 7}),
        ("skip", {"routes": ["tests.task"], "until": "yesterday"}),
        ("skip", {"routes": ["tests.task"], "until": "2026-11-26T12:00:00"}),
        ("dance", {"routes": []}),
    ],
)
def test_a_command_that_makes_no_sense_is_refused_and_the_next_one_done(
    broker: Broker, queue: CommandQueue, control: Control, verb: str, arguments: dict[str, Any]
) -> None:
    for number, each in enumerate(((verb, arguments), ("pause", {"routes": ["tests.task"]}))):
        fields = {"at": "", "who": "me", "id": str(number), "arguments": each[1], "verb": each[0]}
        broker.client.rpush(_WAITING, json.dumps(fields, indent=1))  # not as our command line writes it
    for _ in range(2):
        vars(control)["_looked_at"] = float("-inf")  # it is time to look
        control.look()
    assert [each.is_refused for each in queue.record()] == [False, True]
    assert not broker.client.exists(_WAITING)
    control.restore()  # what is in force can be read


def test_a_broker_that_does_not_let_us_record_commands_is_told_once(
    broker: Broker, queue: CommandQueue, control: Control
) -> None:
    broker.client.rpush(
        _WAITING, json.dumps({"verb": "dance", "arguments": {}, "id": "1", "who": "", "at": ""})
    )
    broker.client.execute_command("ACL", "SETUSER", "default", "-lrem")
    try:
        with capture_logs() as logs:
            for _ in range(3):
                vars(control)["_looked_at"] = float("-inf")
                control.look()
    finally:
        broker.client.execute_command("ACL", "SETUSER", "default", "+@all")
    told = [line for line in logs if line["event"] == "commands_not_read"]
    assert [line["log_level"] for line in told] == ["warning"]
    assert "lrem" in told[0]["error"].lower()
