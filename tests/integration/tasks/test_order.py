"""A ticket's messages keep the order of its changes, also if the task of an earlier change is delayed."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import psycopg2
import pytest

from cdc_tasks import db
from cdc_tasks.helpdesk.tickets import notify_ticket_insert, notify_ticket_update
from cdc_tasks.retry import NotYetError
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
            wait_until(lambda: len(social.posted) == 2, timeout=40, what="both messages")
            assert "NotYet" in worker.log  # the update was there first
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


def test_a_task_that_gives_up_does_not_block_later_ones(
    in_process: HelpDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert = in_process.insert_ticket(assigned_to_id=in_process.CARL)
    update = in_process.update_ticket(insert.row["id"], status="closed")
    with monkeypatch.context() as broken:
        broken.setattr("cdc_tasks.helpdesk.tickets.notify_users", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            notify_ticket_insert(insert.to_message())
    assert notify_ticket_update(update.to_message()) == "0 messages queued"


def test_two_tickets_do_not_wait_for_each_other(
    in_process: HelpDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = in_process.insert_ticket(assigned_to_id=in_process.CARL)
    second = in_process.insert_ticket(assigned_to_id=in_process.CARL)
    update = in_process.update_ticket(first.row["id"], status="closed")
    with monkeypatch.context() as broken:
        broken.setattr("cdc_tasks.helpdesk.tickets.notify_users", _database_is_away)
        with pytest.raises(db.DatabaseAwayError):
            notify_ticket_insert(first.to_message())
    with pytest.raises(NotYetError):
        notify_ticket_update(update.to_message())
    assert notify_ticket_insert(second.to_message()) == "0 messages queued"


def _database_is_away(*_: object) -> int:
    raise db.DatabaseAwayError


def _waiting_for_a_lock(helpdesk: HelpDesk) -> bool:
    [(number,)] = helpdesk.database.fetch("SELECT count(*) FROM pg_locks WHERE NOT granted")
    return bool(number)
