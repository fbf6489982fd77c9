"""A ticket's messages keep the order of its changes, also if the task of an earlier change is delayed."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import psycopg2

from harness.embedded_servers import PostgresServer
from harness.waiting import wait_until
from harness.worker import Worker
from tests.conftest import Database
from tests.support.helpdesk import HelpDesk

if TYPE_CHECKING:
    from tests.conftest import Broker
    from tests.support.social_stub import SocialStub

_IN_ORDER = ["New Ticket", "Ticket Updated"]


def test_an_update_does_not_overtake_an_insert_whose_task_is_retried(
    broker: Broker, social: SocialStub
) -> None:
    with PostgresServer() as server, closing(psycopg2.connect(server.url)) as connection:
        connection.autocommit = True
        database = Database(name="postgres", server=server, connection=connection)
        helpdesk = HelpDesk.open(database, broker, social)
        helpdesk.connect_slack(helpdesk.CARL, "C0CARL")
        insert = helpdesk.insert_ticket(assigned_to_id=helpdesk.CARL)
        update = helpdesk.update_ticket(insert.row["id"], status="closed")
        with Worker(helpdesk.environment) as worker:
            wait_until(
                lambda: worker.events("master_cache_refilled"), what="the worker to have nothing to do"
            )
            server.stop()
            helpdesk.send("cdc_tasks.notify_ticket_insert", insert)
            wait_until(lambda: worker.log.count("DatabaseAway") >= 4, timeout=30, what="a wait of seconds")
            server.start()
            helpdesk.send("cdc_tasks.notify_ticket_update", update)
            wait_until(lambda: _waits_for_its_key(helpdesk), what="the update to be there first")
            wait_until(lambda: len(social.posted) == 2, timeout=40, what="both messages")
    assert [each.heading for each in social.posted] == _IN_ORDER


def test_an_update_does_not_overtake_an_insert_whose_worker_was_killed(
    helpdesk: HelpDesk, social: SocialStub
) -> None:
    helpdesk.connect_slack(helpdesk.CARL, "C0CARL")
    insert = helpdesk.insert_ticket(assigned_to_id=helpdesk.CARL)
    update = helpdesk.update_ticket(insert.row["id"], status="closed")
    environment = {
        **helpdesk.environment,
        "CELERY_CONFIG_MODULE": "tests.support.celery_settings.short_lease",
    }
    with closing(helpdesk.database.connect()) as locking, locking.cursor() as cursor:
        cursor.execute("LOCK TABLE tickets IN ACCESS EXCLUSIVE MODE")
        with Worker(environment) as worker:
            helpdesk.send("cdc_tasks.notify_ticket_insert", insert)
            wait_until(lambda: _waiting_for_a_lock(helpdesk), what="the task to be in the middle")
            worker.kill()
        locking.rollback()
    with Worker(environment) as worker:
        helpdesk.send("cdc_tasks.notify_ticket_update", update)
        wait_until(lambda: len(social.posted) == 2, timeout=30, what="both messages")
    assert [each.heading for each in social.posted] == _IN_ORDER


def _waits_for_its_key(helpdesk: HelpDesk) -> bool:
    return any(key.startswith(b"tickets:") for key in helpdesk.broker.client.smembers("cdc:keys:held-up"))


def _waiting_for_a_lock(helpdesk: HelpDesk) -> bool:
    [(number,)] = helpdesk.database.fetch("SELECT count(*) FROM pg_locks WHERE NOT granted")
    return bool(number)
