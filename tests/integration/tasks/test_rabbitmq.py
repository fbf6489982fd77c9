"""The same tasks with RabbitMQ as their broker: quorum queues, and delays in the broker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery

from cdc_tasks import install
from cdc_tasks.broker.connection import Connection
from cdc_tasks.broker.rabbitmq.queues import existing_queue
from cdc_tasks.retry import UnroutableError
from cdc_tasks.versions import lacking_parts
from harness.waiting import wait_until
from harness.worker import Worker
from tests.support.rabbitmq import open_channel
from tests.support.social_stub import RateLimit

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from harness.machine_servers import RabbitMQServer
    from tests.support.helpdesk import HelpDesk
    from tests.support.social_stub import SocialStub


def test_a_message_that_must_wait_waits_in_the_broker_and_arrives(
    helpdesk: HelpDesk, social: SocialStub, rabbitmq_server: RabbitMQServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    helpdesk.connect_slack(helpdesk.ANNA, "C0ANNA")
    social.fail("C0ANNA", RateLimit(2))
    environment = {**helpdesk.environment, "CELERY_BROKER_URL": rabbitmq_server.url}
    with Worker(environment) as worker:
        monkeypatch.setenv("CELERY_BROKER_URL", rabbitmq_server.url)
        with Celery("tests", set_as_current=False) as app:
            app.config_from_object(fresh_celeryconfig())
            insert = helpdesk.insert_ticket(assigned_to_id=helpdesk.ANNA).to_message()
            app.send_task("cdc_tasks.notify_ticket_insert", [insert])
        wait_until(lambda: social.posted, timeout=30, what="the message that was tried again")
        assert "direct exchange" not in worker.log
        assert social.attempts["C0ANNA"] == 2


def test_a_wait_of_less_than_a_second_counts_as_a_try_and_ends(
    helpdesk: HelpDesk, rabbitmq_server: RabbitMQServer
) -> None:
    """RabbitMQ's delays are in whole seconds, and Celery refuses none."""
    environment = {
        **helpdesk.environment,
        "CELERY_BROKER_URL": rabbitmq_server.url,
        "CDC_TASK_MODULES": "tests.support.tasks.faulty",
    }
    with Worker(environment) as worker, sender_of(environment) as sender:
        sender.send_task("faulty.retries_out", queue="celery")  # it waits for 0.1 s
        [line] = wait_until(lambda: worker.events("task_gave_up"), timeout=20, what="the last try")
        assert line["tries"] == 3
        assert "did not accept the retry" not in worker.log


def test_a_task_that_is_tried_again_and_again_waits_in_the_same_queues_each_time(
    helpdesk: HelpDesk, rabbitmq_server: RabbitMQServer
) -> None:
    """RabbitMQ adds a header for each queue in which a message has waited; with it the message could not wait again."""
    environment = _with_faulty_tasks(helpdesk, rabbitmq_server)
    with Worker(environment) as worker, sender_of(environment) as sender:
        # Three seconds: two of the queues for delays, one after the other.
        task = sender.send_task("faulty.retries_out", kwargs={"after": 2}, queue="cdc_bulk")
        assert _given_up(worker, task.id)["tries"] == 3
    letter = json.loads(helpdesk.broker.cache.hget("cdc:dead-letters", task.id))
    assert letter["queue"] == "cdc_bulk"  # a replay goes there


@pytest.mark.parametrize("missing", ["an exchange", "a binding"])
def test_a_retry_for_which_rabbitmq_has_no_queue_for_waits_makes_it(
    helpdesk: HelpDesk, rabbitmq_server: RabbitMQServer, missing: str
) -> None:
    environment = _with_faulty_tasks(helpdesk, rabbitmq_server)
    with Worker(environment) as worker, sender_of(environment) as sender:
        with open_channel(rabbitmq_server) as channel:
            if missing == "an exchange":
                channel.exchange_delete("celery_delayed_27")
            else:
                channel.exchange_unbind("celery_delayed_26", "celery_delayed_27", "0.#")
        task = sender.send_task("faulty.retries_out", queue="celery")
        assert _given_up(worker, task.id)["tries"] == 3
        assert worker.events("queues_for_waits_missing")


def test_a_task_for_which_rabbitmq_has_no_queue_is_an_error(
    helpdesk: HelpDesk, rabbitmq_server: RabbitMQServer
) -> None:
    with sender_of(_with_faulty_tasks(helpdesk, rabbitmq_server)) as sender:
        install(sender)
        sender.send_task("faulty.counts", ["counted", True], queue="celery")  # makes the exchange
        with pytest.raises(UnroutableError, match="'nowhere'"):
            sender.send_task("faulty.counts", ["counted", True], exchange="cdc_tasks", routing_key="nowhere")
        sender.send_task("faulty.counts", ["counted", True], queue="celery")
    with Worker(_with_faulty_tasks(helpdesk, rabbitmq_server)):
        wait_until(lambda: helpdesk.broker.cache.get("counted") == b"2", timeout=30, what="the other two")


def _given_up(worker: Worker, task_id: str) -> dict[str, Any]:
    """Return the worker's log line of the last try; a task of the test before may come back and give up too."""

    def lines() -> list[dict[str, Any]]:
        return [line for line in worker.events("task_gave_up") if line["dead_letter"] == task_id]

    return wait_until(lines, timeout=30, what="the last try")[0]


def _with_faulty_tasks(helpdesk: HelpDesk, server: RabbitMQServer) -> dict[str, str]:
    return {
        **helpdesk.environment,
        "CELERY_BROKER_URL": server.url,
        "CDC_TASK_MODULES": "tests.support.tasks.faulty",
    }


def sender_of(environment: dict[str, str], kind: Callable[..., Celery] = Celery) -> Celery:
    """Return an app with the same settings and no tasks, such as the listener's."""
    app: Celery = kind("tests", set_as_current=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CELERY_BROKER_URL", environment["CELERY_BROKER_URL"])
        app.config_from_object(fresh_celeryconfig())
        app.conf.broker_url  # noqa: B018  # reads the settings now
    return app


def fresh_celeryconfig() -> ModuleType:
    """Load the settings for the broker of the current environment, without those that were loaded before."""
    spec = spec_from_file_location(
        "celeryconfig_for_rabbitmq", Path(__file__).parents[3] / "cdc_tasks/config/celery.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_EVERY_WAY_TO_SEND = """
from datetime import UTC, datetime, timedelta
from celery import group
from cdc_tasks.celery import app

app.loader.import_default_modules()
task = app.tasks["faulty.counts"]
signature = task.s("counted", True)
soon = lambda: datetime.now(UTC) + timedelta(seconds=0.5)
app.send_task("faulty.counts", ["counted", True], countdown=0.5)
app.send_task("faulty.counts", ["counted", True], eta=soon())
app.send_task("faulty.counts", ["counted", True], eta=soon().isoformat())
task.apply_async(("counted", True), countdown=0.5)
task.apply_async(("counted", True), eta=soon())
signature.set(countdown=0.5).apply_async()
signature.clone().apply_async(eta=soon())
app.signature("faulty.counts", ("counted", True), countdown=0.2).apply_async()
group(task.s("counted", True), task.s("counted", True)).apply_async(countdown=0.3)
"""


def test_a_wait_of_less_than_a_second_may_be_asked_for_in_every_way(
    helpdesk: HelpDesk, rabbitmq_server: RabbitMQServer
) -> None:
    environment = {
        **helpdesk.environment,
        "CELERY_BROKER_URL": rabbitmq_server.url,
        "CDC_TASK_MODULES": "tests.support.tasks.faulty",
    }
    with Worker(environment):
        sent = subprocess.run(
            [sys.executable, "-c", _EVERY_WAY_TO_SEND],
            env={**os.environ, **environment},
            cwd=Path(__file__).parents[3],
            check=False,
            capture_output=True,
            text=True,
        )
        assert sent.returncode == 0, sent.stderr
        counted = helpdesk.broker.cache.get
        wait_until(lambda: counted("counted") == b"10", timeout=30, what="all ten")


def test_a_wait_on_one_connection_costs_none_its_heartbeats(
    rabbitmq_server: RabbitMQServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that starts on a busy machine is silent on its other connections for longer than two heartbeats."""
    monkeypatch.setattr("cdc_tasks.broker.rabbitmq.transport._BEAT", 1.2)  # RabbitMQ's come each second
    url = rabbitmq_server.url
    with Connection(url, heartbeat=2) as first, Connection(url, heartbeat=2) as second:
        connections: list[Any] = [each.connection for each in (first, second)]
        existing_queue(connections[1], "celery")
        with suppress(TimeoutError):  # RabbitMQ sends nothing but heartbeats
            connections[0].drain_events(timeout=7)
        for each in connections:
            assert existing_queue(each, "no such queue") is None
            assert existing_queue(each, "nor this one") is None


@pytest.mark.versions
def test_the_queue_for_health_checks_goes_with_its_worker(
    helpdesk: HelpDesk, rabbitmq_server: RabbitMQServer
) -> None:
    environment = {**helpdesk.environment, "CELERY_BROKER_URL": rabbitmq_server.url}
    with Worker(environment, "-n", "short@%h") as worker:
        lacks = [each["lacks"] for each in worker.events("celery_version_lacks_parts")]
        assert lacks == ([lacking_parts("amqp")] if lacking_parts("amqp") else [])
        assert "cdc_health.short@" in rabbitmq_server.control("list_queues", "name")
        worker.kill()
        wait_until(
            lambda: "cdc_health.short@" not in rabbitmq_server.control("list_queues", "name"),
            timeout=30,
            what="the queue to go",
        )
