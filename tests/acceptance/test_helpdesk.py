"""The help desk from the SQL to the message, with real programs, on PostgreSQL, MariaDB and MySQL."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from harness.waiting import wait_until
from tests.acceptance.desk import Desk, running_desk
from tests.conftest import fresh_database, fresh_mysql_database
from tests.support.social_stub import Error

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module", params=["postgres_server", "mariadb_server", "mysql_server"])
def desk(request: pytest.FixtureRequest) -> Iterator[Desk]:
    """One desk for all tests of a database: the tests find their own messages by their words."""
    fresh = fresh_database if request.param == "postgres_server" else fresh_mysql_database
    with fresh(request.getfixturevalue(request.param)) as database, running_desk(database) as running:
        yield running


def test_a_new_ticket_reaches_the_assignee_and_every_manager_on_all_their_accounts(desk: Desk) -> None:
    desk.insert_ticket('Feuer 🔥 im "Drucker"', desk.ANNA)

    desk.wait_for_messages(
        "Feuer 🔥",
        ("C0ANNA", "New Ticket"),
        ("anna", "New Ticket"),
        ("C0MONA", "Manager: New Ticket"),
        ("vera", "Manager: New Ticket"),
    )
    for message in (each for each in desk.social.posted if "Feuer" in each.text):
        for words in ("TKT-00001", "Anna", "Carl", "Normal", "open"):
            assert words in message.text


def test_the_message_about_an_update_shows_the_old_and_the_new_values(desk: Desk) -> None:
    desk.insert_ticket("Handed over", desk.CARL)
    desk.database.execute(
        "UPDATE tickets SET status = 'in progress', priority = 'Urgent', assigned_to_id = 5"
        " WHERE title = 'Handed over'"
    )

    desk.wait_for_messages(
        "Carl → Paul",
        ("C0PAUL", "Ticket Updated"),
        ("C0MONA", "Manager: Ticket Updated"),
        ("vera", "Manager: Ticket Updated"),
    )
    for message in (each for each in desk.social.posted if "Carl → Paul" in each.text):
        assert "open → in progress" in message.text
        assert "Normal → Urgent" in message.text


def test_a_rolled_back_ticket_or_an_unreported_column_sends_nothing(desk: Desk) -> None:
    with closing(desk.database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("INSERT INTO tickets (title, assigned_to_id) VALUES ('Rolled back', 3)")
        connection.rollback()
    desk.insert_ticket("Committed", desk.DORA)
    desk.database.execute("UPDATE tickets SET description = 'Committed, too' WHERE title = 'Committed'")
    desk.database.execute("UPDATE tickets SET status = 'closed' WHERE title = 'Committed'")

    desk.wait_for_messages("Committed", ("C0DORA", "New Ticket"), ("C0DORA", "Ticket Updated"))
    assert desk.messages("Rolled back") == []


def test_a_new_user_is_welcomed(desk: Desk) -> None:
    with closing(desk.database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("INSERT INTO users (id, name, email) VALUES (100, 'Zoë', 'zoe@example.com')")
        cursor.execute(desk.account(100, "slack", "xoxb-good", "C0ZOE"))
        connection.commit()

    desk.wait_for_messages("Zoë", ("C0ZOE", "Welcome"))


def test_the_master_cache_follows_the_tables(desk: Desk) -> None:
    desk.wait_for_cache("priorities", ["Low", "Normal", "High", "Urgent"])
    desk.database.execute("INSERT INTO roles (name) VALUES ('Admin')")
    desk.database.execute("INSERT INTO roles (name) VALUES ('Agent')")
    desk.wait_for_cache("roles", ["Admin", "Agent"])
    desk.database.execute("UPDATE roles SET name = 'Super Admin' WHERE name = 'Admin'")
    desk.wait_for_cache("roles", ["Super Admin", "Agent"])
    desk.database.execute("DELETE FROM roles WHERE name = 'Agent'")
    desk.wait_for_cache("roles", ["Super Admin"])
    desk.database.execute("UPDATE statuses SET is_closed = true WHERE name = 'in progress'")
    desk.wait_for_cache("statuses:open", ["open"])

    desk.cache.delete("master:roles")
    desk.cache.delete("master:departments")
    assert "1 row of roles" in desk.run_command("refresh-cache", "roles").stderr
    desk.wait_for_cache("roles", ["Super Admin"])


def test_preferences_are_respected(desk: Desk) -> None:
    muted = desk.run_command("preferences", "paul@example.com", "--mute", "new_ticket", "--quiet", "none")
    assert "muted: new_ticket" in muted.stderr, muted.stderr
    assert (
        "copies for managers: no"
        in desk.run_command("preferences", "vera@example.com", "--no-manager-copies").stderr
    )

    desk.insert_ticket("Wanted", desk.PAUL)
    desk.database.execute("UPDATE tickets SET priority = 'High' WHERE title = 'Wanted'")

    desk.wait_for_messages(
        "Normal → High", ("C0PAUL", "Ticket Updated"), ("C0MONA", "Manager: Ticket Updated")
    )
    assert ("C0PAUL", "New Ticket") not in desk.messages("Wanted")
    assert "vera" not in {to for to, _ in desk.messages("Wanted")}
    assert desk.run_command("preferences", "vera@example.com", "--manager-copies").returncode == 0


def test_a_message_that_cannot_be_sent_is_kept_and_can_be_replayed(desk: Desk) -> None:
    desk.social.fail("C0DORA", Error("invalid_auth"))
    desk.insert_ticket("Returned to sender", desk.DORA)

    wait_until(
        lambda: "cdc_tasks.deliver" in desk.run_command("dead-letters", "list").stdout,
        timeout=30,
        what="the letter",
    )
    (letter,) = json.loads(desk.run_command("dead-letters", "list", "--json").stdout)
    assert "invalid_auth" in letter["error"]
    assert desk.messages("Returned to sender") == []

    assert desk.run_command("dead-letters", "replay", letter["id"]).returncode == 0
    desk.wait_for_messages("Returned to sender", ("C0DORA", "New Ticket"))


def test_an_account_is_connected_by_a_command(desk: Desk) -> None:
    refused = desk.run_command("connect-account", "nobody@example.com", "slack", secret="xoxb-good")
    assert (refused.returncode, "No user" in refused.stderr) == (1, True)
    added = desk.run_command(
        "connect-account", "carl@example.com", "slack", "--address", "C0CARL", secret="xoxb-secret"
    )
    assert "connected" in added.stderr, added.stderr
    assert "carl@example.com" in desk.run_command("accounts").stdout
    [(sealed,)] = desk.database.fetch("SELECT secret FROM connected_accounts WHERE address = 'C0CARL'")
    assert "xoxb" not in sealed

    desk.insert_ticket("For Carl", desk.CARL)
    desk.wait_for_messages("For Carl", ("C0CARL", "New Ticket"))
