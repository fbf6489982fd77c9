"""`python -m cdc_tasks health`, as a container's health check runs it, and connections that break without a signal."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.waiting import wait_until
from harness.worker import Worker
from tests.acceptance.network import Cable
from tests.integration.tasks.test_rabbitmq import sender_of
from tests.support.warm_python import WARM

if TYPE_CHECKING:
    from harness.machine_servers import RabbitMQServer
    from tests.support.helpdesk import HelpDesk

_CHECKOUT = Path(__file__).resolve().parents[3]


def test_a_worker_that_works_answers_and_one_that_does_not_is_told_with_its_hint(helpdesk: HelpDesk) -> None:
    helpdesk.broker.cache.hset("cdc:dead-letters", "an-id", "{}")
    helpdesk.broker.client.hset("cdc:shop:parked", "an-id", "{}")
    with Worker(helpdesk.environment, "-Q", "cdc_cache") as worker:  # with any queues
        found = json.loads(_health(helpdesk.environment, "--json").stdout)
        assert found["worker"] == f"celery@{socket.gethostname()}"
        assert found["milliseconds"] > 0
        assert (found["dead_letters"], found["parked"]) == (1, 1)
        assert "1 dead letter:" in _health(helpdesk.environment).stderr

        worker.pause()  # its process and its connections stay, but it does nothing
        result = _health(helpdesk.environment, "--timeout", "2", status=1)
        assert "has not answered for 2 seconds" in result.stderr
        assert "celery -A cdc_tasks inspect active" in result.stderr
        worker.pause(on=False)
        _health(helpdesk.environment)
    assert (
        "is that its name?"
        in _health(helpdesk.environment, "--worker", "me@here", "--timeout", "1", status=1).stderr
    )


def test_any_worker_may_answer_and_none_is_an_error(helpdesk: HelpDesk) -> None:
    assert (
        "celery -A cdc_tasks worker"
        in _health(helpdesk.environment, "--any", "--timeout", "1", status=1).stderr
    )
    with Worker(helpdesk.environment, "-n", "another@%h"):
        _health(helpdesk.environment, "--any")
        _health(helpdesk.environment, "--worker", f"another@{socket.gethostname()}")


@pytest.mark.parametrize("variable", ["CELERY_BROKER_URL", "CACHE_URL"])
def test_a_server_that_is_away_is_named(helpdesk: HelpDesk, variable: str) -> None:
    result = _health({**helpdesk.environment, variable: "redis://:the-password@127.0.0.1:1/0"}, status=1)
    assert variable in result.stderr
    assert "the-password" not in result.stderr
    assert "Traceback" not in result.stderr


def test_the_round_trip_goes_through_rabbitmq_as_well(
    helpdesk: HelpDesk, rabbitmq_server: RabbitMQServer
) -> None:
    environment = {**helpdesk.environment, "CELERY_BROKER_URL": rabbitmq_server.url}
    with Worker(environment) as worker:
        _health(environment)
        assert "direct exchange" not in worker.log


@pytest.mark.parametrize("broker_kind", ["redis", "rabbitmq"])
def test_a_broker_connection_that_is_cut_without_a_word_heals_by_itself(
    helpdesk: HelpDesk, broker_kind: str, request: pytest.FixtureRequest
) -> None:
    direct, port = helpdesk.broker.url, helpdesk.broker.server.port
    if broker_kind == "rabbitmq":
        direct, port = (server := request.getfixturevalue("rabbitmq_server")).url, server.port
    with Cable(port) as cable:
        through = direct.replace(f":{port}", f":{cable.port}")
        environment = {**helpdesk.environment, "CELERY_BROKER_URL": direct}
        with Worker({**environment, "CELERY_BROKER_URL": through}), sender_of(environment) as sender:
            _health(environment)
            cable.stall(new_ones=False)  # packets are dropped, without an error
            sender.send_task("cdc_tasks.answer_health", ["it-heals"])
            answered = partial(helpdesk.broker.cache.exists, "cdc:health:it-heals")
            wait_until(answered, timeout=30, what="the answer")


def _health(
    environment: dict[str, str], *arguments: str, status: int = 0
) -> subprocess.CompletedProcess[str]:
    result = WARM.run(
        [sys.executable, "-m", "cdc_tasks", "health", *arguments],
        env={**os.environ, **environment},
        cwd=_CHECKOUT,
    )
    assert result.returncode == status, result.stderr
    return result
