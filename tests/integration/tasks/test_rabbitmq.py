"""The same tasks with RabbitMQ as their broker: quorum queues, and waits that the broker keeps."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from celery import Celery

from tests.social_stub import RateLimit
from tests.waiting import wait_until
from tests.worker import Worker

if TYPE_CHECKING:
    from types import ModuleType

    from tests.helpdesk import HelpDesk
    from tests.servers import RabbitMQServer
    from tests.social_stub import SocialStub


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
        "CDC_TASK_MODULES": "tests.faulty_tasks",
    }
    with Worker(environment) as worker, sender_of(environment) as sender:
        sender.send_task("faulty.retries_out", queue="celery")  # it waits for 0.1 s
        [line] = wait_until(lambda: worker.events("task gave up"), timeout=20, what="the last try")
        assert line["tries"] == 3
        assert "did not take the retry" not in worker.log


def sender_of(environment: dict[str, str]) -> Celery:
    """What the listener is to Celery: an app with the same settings and no tasks."""
    app = Celery("tests", set_as_current=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CELERY_BROKER_URL", environment["CELERY_BROKER_URL"])
        app.config_from_object(fresh_celeryconfig())
        app.conf.broker_url  # noqa: B018  # reads the settings now
    return app


def fresh_celeryconfig() -> ModuleType:
    """Load it for the broker that the environment names now, whatever this process has loaded before."""
    spec = spec_from_file_location(
        "celeryconfig_for_rabbitmq", Path(__file__).parents[3] / "cdc_tasks/config/celery.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
