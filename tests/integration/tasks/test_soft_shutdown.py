"""SIGTERM: running tasks end, waiting ones go back, nothing is lost and nothing runs twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.waiting import wait_until
from harness.worker import Worker
from tests.integration.tasks.test_rabbitmq import sender_of
from tests.support.social_stub import RateLimit

if TYPE_CHECKING:
    from tests.support.helpdesk import HelpDesk


@pytest.mark.parametrize("broker_kind", ["redis", "rabbitmq"])
def test_a_worker_that_is_asked_to_end_finishes_what_runs_and_leaves_the_rest_to_others(
    helpdesk: HelpDesk, broker_kind: str, request: pytest.FixtureRequest
) -> None:
    environment = {**helpdesk.environment, "CDC_TASK_MODULES": "tests.support.tasks.killed"}
    if broker_kind == "rabbitmq":
        environment["CELERY_BROKER_URL"] = request.getfixturevalue("rabbitmq_server").url
    helpdesk.connect_slack(helpdesk.CARL, "C0CARL")
    helpdesk.social.fail("C0CARL", RateLimit(15))  # one waits for its next try when the end comes
    cache = helpdesk.broker.cache
    with sender_of(environment) as sender:
        with Worker(environment) as worker:
            insert = helpdesk.insert_ticket(assigned_to_id=helpdesk.CARL).to_message()
            sender.send_task("cdc_tasks.notify_ticket_insert", [insert], queue="cdc_notifications")
            wait_until(lambda: "RateLimited" in worker.log, what="the wait to begin")
            for number in range(6):
                sender.send_task("killed.note_slowly", [number], queue="cdc_bulk")
            wait_until(lambda: cache.llen("begun") >= 2, what="two to run")
            assert worker.stop() == 0
        assert cache.hlen("noted") == cache.llen("begun") < 6
        assert helpdesk.social.posted == []

        with Worker(environment):
            wait_until(lambda: cache.hlen("noted") == 6, timeout=20, what="the rest")
            wait_until(lambda: helpdesk.social.posted, timeout=20, what="the message")
    assert cache.hvals("noted") == [b"1"] * 6
    assert cache.llen("begun") == 6
    assert [each.to for each in helpdesk.social.posted] == ["C0CARL"]
