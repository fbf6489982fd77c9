"""A server that a task needs is down: the task waits, and runs when the server is back."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING

import psycopg2
import pytest

from harness.embedded_servers import PostgresServer, ValkeyServer
from harness.waiting import wait_until
from harness.worker import Worker, unacknowledged
from tests.conftest import Database
from tests.support.helpdesk import HelpDesk
from tests.support.social_stub import RateLimit

if TYPE_CHECKING:
    from tests.conftest import Broker
    from tests.support.social_stub import SocialStub


def test_tasks_wait_for_a_database_that_is_away(broker: Broker, social: SocialStub) -> None:
    with PostgresServer() as server, closing(psycopg2.connect(server.url)) as connection:
        connection.autocommit = True
        helpdesk = HelpDesk.open(
            Database(name="postgres", server=server, connection=connection), broker, social
        )
        helpdesk.connect_slack(helpdesk.ANNA, "C0ANNA")
        insert = helpdesk.insert_ticket(assigned_to_id=helpdesk.ANNA)
        with Worker(helpdesk.environment) as worker:
            server.stop()
            helpdesk.send("cdc_tasks.notify_ticket_insert", insert)
            helpdesk.send("cdc_tasks.refresh_master_cache", "statuses", queue="cdc_cache")
            wait_until(lambda: worker.log.count("DatabaseAway") >= 2, timeout=20, what="both tasks to wait")
            server.start()

            wait_until(lambda: social.to("C0ANNA"), timeout=30, what="the message")
            found = wait_until(lambda: broker.cache.get("master:statuses"), timeout=30, what="the statuses")
            assert len(json.loads(found)) == 3


def test_a_message_waits_for_the_record_of_what_was_sent(helpdesk: HelpDesk, social: SocialStub) -> None:
    """Without the record it might be sent twice."""
    helpdesk.connect_slack(helpdesk.ANNA, "C0ANNA")
    insert = helpdesk.insert_ticket(assigned_to_id=helpdesk.ANNA)
    with ValkeyServer() as server, Worker({**helpdesk.environment, "CACHE_URL": server.url_of(1)}) as worker:
        server.stop()
        helpdesk.send("cdc_tasks.notify_ticket_insert", insert)
        wait_until(lambda: "CacheAway" in worker.log, timeout=20, what="the task to wait")
        assert social.posted == []
        server.start()
        wait_until(lambda: social.to("C0ANNA"), timeout=30, what="the message")


def test_a_worker_that_is_asked_to_end_gives_back_what_waits_for_its_next_try(
    helpdesk: HelpDesk, social: SocialStub
) -> None:
    helpdesk.connect_slack(helpdesk.ANNA, "C0ANNA")
    social.fail("C0ANNA", RateLimit(30))
    with Worker(helpdesk.environment) as worker:
        helpdesk.send("cdc_tasks.notify_ticket_insert", helpdesk.insert_ticket(assigned_to_id=helpdesk.ANNA))
        wait_until(lambda: "RateLimited" in worker.log, what="the wait to begin")
        assert worker.stop() == 0
    assert helpdesk.broker.client.llen("cdc_notifications") == 1
    assert not unacknowledged(helpdesk.broker.client)


@pytest.mark.versions
def test_a_broker_that_restarts_keeps_its_tasks_and_gets_its_workers_back(
    helpdesk: HelpDesk, social: SocialStub
) -> None:
    helpdesk.connect_slack(helpdesk.ANNA, "C0ANNA")
    insert = helpdesk.insert_ticket(assigned_to_id=helpdesk.ANNA)
    social.fail("C0ANNA", RateLimit(1))
    with ValkeyServer(append_only=True) as server:
        environment = {**helpdesk.environment, "CELERY_BROKER_URL": server.url}
        with Worker(
            {**environment, "CELERY_CONFIG_MODULE": "tests.support.celery_settings.short_lease"}
        ) as worker:
            helpdesk.send("cdc_tasks.notify_ticket_insert", insert, broker_url=server.url)
            wait_until(lambda: "RateLimited" in worker.log, what="a task that the worker holds")
            server.restart()
            wait_until(lambda: worker.log.count("Connected to") >= 2, timeout=30, what="the worker to return")
            wait_until(lambda: social.to("C0ANNA"), timeout=30, what="the message")
    assert len(social.posted) == 1
