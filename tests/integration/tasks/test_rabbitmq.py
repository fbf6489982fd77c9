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


def fresh_celeryconfig() -> ModuleType:
    """Load it for the broker that the environment names now, whatever this process has loaded before."""
    spec = spec_from_file_location("celeryconfig_for_rabbitmq", Path(__file__).parents[3] / "celeryconfig.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
