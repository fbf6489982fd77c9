"""Without a recipient nothing is sent, the log says why, and the task is not retried."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from structlog.testing import capture_logs

from cdc_tasks import db
from cdc_tasks.changes import EventType, RowChange
from cdc_tasks.helpdesk.tickets import notify_ticket_insert, notify_ticket_update
from cdc_tasks.helpdesk.users import get_manager_ids, welcome_user
from cdc_tasks.notify.delivery import deliver
from tests.support.helpdesk import change

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.helpdesk import HelpDesk


def test_an_update_of_something_else(in_process: HelpDesk) -> None:
    in_process.connect_slack(in_process.ANNA, "C0ANNA")
    in_process.insert_ticket(assigned_to_id=in_process.ANNA)
    update = in_process.update_ticket(1, title="Printer still on fire")
    _expect(in_process, notify_ticket_update, update, "no reported column has changed")


def test_a_ticket_without_an_assignee(in_process: HelpDesk) -> None:
    _expect(in_process, notify_ticket_insert, in_process.insert_ticket(), "the ticket has no assignee")


def test_an_assignee_without_an_account(in_process: HelpDesk) -> None:
    insert = in_process.insert_ticket(assigned_to_id=in_process.CARL)
    _expect(in_process, notify_ticket_insert, insert, "the user has no connected account")


def test_an_assignee_whose_account_is_switched_off(in_process: HelpDesk) -> None:
    in_process.connect_slack(in_process.CARL, "C0CARL")
    in_process.database.execute("UPDATE connected_accounts SET is_active = false")
    insert = in_process.insert_ticket(assigned_to_id=in_process.CARL)
    _expect(in_process, notify_ticket_insert, insert, "the user has no connected account")


def test_a_ticket_that_is_deleted_before_its_task_runs(in_process: HelpDesk) -> None:
    in_process.connect_slack(in_process.ANNA, "C0ANNA")
    insert = in_process.insert_ticket(assigned_to_id=in_process.ANNA)
    in_process.database.execute("DELETE FROM tickets")
    _expect(in_process, notify_ticket_insert, insert, "the ticket is gone")


def test_a_user_who_is_deleted_before_the_welcome(in_process: HelpDesk) -> None:
    _expect(in_process, welcome_user, change(EventType.INSERT, "users", after={"id": 99}), "the user is gone")


def test_a_ticket_that_is_deleted_between_its_task_and_the_message(in_process: HelpDesk) -> None:
    account_id = in_process.connect_slack(in_process.ANNA, "C0ANNA")
    assert deliver(account_id, "new_ticket", 99, "change") == "nothing sent: its subject is gone"
    assert in_process.social.posted == []


def test_an_account_that_is_gone_before_the_message(in_process: HelpDesk) -> None:
    in_process.insert_ticket(assigned_to_id=in_process.ANNA)
    assert deliver(99, "new_ticket", 1, "change") == "nothing sent: the account is gone"


def test_managers_are_found_up_the_chain_each_once(in_process: HelpDesk) -> None:
    vera, mona, anna, carl = in_process.VERA, in_process.MONA, in_process.ANNA, in_process.CARL
    with db.session() as session:
        assert get_manager_ids(anna, session) == [mona, vera]
        assert get_manager_ids(carl, session) == []
        assert get_manager_ids(99, session) == []
    in_process.database.execute("UPDATE users SET manager_id = %s WHERE id = %s", mona, vera)
    with db.session() as session:
        assert get_manager_ids(anna, session) == [mona, vera]
        assert get_manager_ids(mona, session) == [vera]
    in_process.database.execute("UPDATE users SET manager_id = id WHERE id = %s", carl)
    with db.session() as session:
        assert get_manager_ids(carl, session) == []


def _expect(
    helpdesk: HelpDesk, task: Callable[[dict[str, Any]], str], row_change: RowChange, reason: str
) -> None:
    with capture_logs() as lines:
        assert task(row_change.to_message()).startswith(("nothing sent", "0 messages queued"))
    assert [(line["event"], line["reason"], line["log_level"]) for line in lines if "reason" in line] == [
        ("nothing_sent", reason, "info")
    ]
    assert helpdesk.broker.client.llen("cdc_notifications") == 0
