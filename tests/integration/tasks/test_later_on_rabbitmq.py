"""On RabbitMQ too a worker keeps a limited number of messages that are due later."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from celery import Celery

from harness.waiting import wait_until
from harness.worker import Worker
from tests.integration.tasks.test_rabbitmq import sender_of

if TYPE_CHECKING:
    from harness.machine_servers import RabbitMQServer
    from tests.support.helpdesk import HelpDesk

_NUMBER = 300


def _environment(helpdesk: HelpDesk, server: RabbitMQServer) -> dict[str, str]:
    return {
        **helpdesk.environment,
        "CELERY_BROKER_URL": server.url,
        "CDC_TASK_MODULES": "tests.support.tasks.killed",
    }


def _unacknowledged(server: RabbitMQServer, queue: str) -> int:
    lines = server.control("list_queues", "name", "messages_unacknowledged").splitlines()
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [queue]), 0)


def _ready(server: RabbitMQServer, prefix: str) -> int:
    lines = server.control("list_queues", "name", "messages_ready").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(prefix))


def test_what_our_apps_send_waits_in_the_broker_and_the_worker_goes_on(
    helpdesk: HelpDesk, rabbitmq_server: RabbitMQServer
) -> None:
    environment = _environment(helpdesk, rabbitmq_server)
    with Worker(environment, "-Q", "cdc_bulk"), sender_of(environment) as sender:
        for number in range(_NUMBER):
            sender.send_task("killed.note", [number], queue="cdc_bulk", countdown=36_000)
        sender.send_task("killed.note", [_NUMBER], queue="cdc_bulk", countdown=1)
        sender.send_task("killed.note", [_NUMBER + 1], queue="cdc_bulk")
        wait_until(lambda: helpdesk.broker.cache.hlen("noted") == 2, timeout=60, what="what is due")
        wait_until(lambda: _ready(rabbitmq_server, "celery_delayed_") == _NUMBER, what="the others to wait")
        assert _unacknowledged(rabbitmq_server, "cdc_bulk") == 0


@pytest.mark.parametrize("kind", ["quorum", "classic"])
def test_of_what_others_send_a_worker_keeps_a_limited_number(
    helpdesk: HelpDesk, rabbitmq_server: RabbitMQServer, kind: str
) -> None:
    environment, queue = _environment(helpdesk, rabbitmq_server), "cdc_bulk"
    if kind == "classic":
        environment["CELERY_CONFIG_MODULE"], queue = "tests.support.celery_settings.classic_queues", "classic"
    most = 2 if kind == "quorum" else 20
    to_queue = {"exchange": "cdc_tasks", "exchange_type": "topic", "routing_key": queue}
    eta = (datetime.now(UTC) + timedelta(hours=10)).isoformat()
    with (
        Worker(environment, "-Q", queue),
        Celery("others", broker=rabbitmq_server.url, set_as_current=False) as others,
    ):
        for number in range(_NUMBER):
            others.send_task("killed.note", [number], eta=eta, **to_queue)
        wait_until(lambda: _ready(rabbitmq_server, queue) == _NUMBER - most, timeout=60, what="the others")
        assert _unacknowledged(rabbitmq_server, queue) == most
