"""The inbox's page in a real browser: messages are readable, newest first, and nothing loads from other hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from cdc_tasks.notify.message import Fact, Message
from cdc_tasks.notify.services import Recipient, slack, teams
from cdc_tasks.settings import WorkerSettings
from demo.inbox import Inbox
from harness.waiting import wait_until
from tests.support.browser import Browser

if TYPE_CHECKING:
    from collections.abc import Iterator

TICKET = Message(
    heading="Ticket Updated",
    title="TKT-00001 Printer <b>on fire</b> & _more_",
    facts=(Fact("Status", "open → in progress"), Fact("Assigned to", "Anna")),
    link="https://helpdesk.example.com/tickets/1",
)
ARTICLES = "return [...document.querySelectorAll('article')].map((each) => each.innerText)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


@pytest.fixture
def inbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Inbox]:
    with Inbox() as opened:
        settings = WorkerSettings(
            database_url=SecretStr("postgresql://unused"),
            slack_api_url=opened.slack_api_url,
            teams_allow_loopback=True,
        )
        monkeypatch.setattr(slack, "worker_settings", lambda: settings)
        monkeypatch.setattr(teams, "worker_settings", lambda: settings)
        yield opened


def send(inbox: Inbox, message: Message, *services: str) -> None:
    for service in services:
        secret = "xoxb-demo" if service == "slack" else inbox.teams_webhook("Mona")
        recipient = Recipient(address=None, secret=SecretStr(secret), email="anna@example.com")
        (slack if service == "slack" else teams).send(recipient, message)


def articles(browser: Browser, count: int) -> list[str]:
    """Wait until the page shows `count` messages, and return them, newest first."""
    return wait_until(
        lambda: found if len(found := browser.run(ARTICLES)) == count else None, what=f"{count} messages"
    )


def test_a_ticket_can_be_read_as_on_slack_and_as_on_teams(browser: Browser, inbox: Inbox) -> None:
    browser.open(inbox.url)
    assert "Nothing has arrived yet" in browser.text

    send(inbox, TICKET, "slack", "teams")
    on_teams, on_slack = articles(browser, 2)

    for article in (on_slack, on_teams):
        for words in (
            "Ticket Updated",
            "TKT-00001 Printer <b>on fire</b> &",
            "Status",
            "open → in progress",
            "Anna",
        ):
            assert words in article
        assert "Open" in article
    assert "Slack" in on_slack
    assert "to anna@example.com" in on_slack
    assert "Teams" in on_teams
    assert "to Mona" in on_teams
    links = browser.run("return [...document.querySelectorAll('article a')].map((each) => each.href)")
    assert set(links) == {"https://helpdesk.example.com/tickets/1"}


def test_messages_come_to_an_open_page_by_themselves_newest_first(browser: Browser, inbox: Inbox) -> None:
    browser.open(inbox.url)
    for title in ("first", "second", "third"):
        send(inbox, Message(heading="New Ticket", title=title), "slack")

    shown = articles(browser, 3)

    assert [title for article in shown for title in ("first", "second", "third") if title in article] == [
        "third",
        "second",
        "first",
    ]
    assert browser.run("return document.getElementById('slack').textContent") == "3"


def test_a_page_opened_late_shows_earlier_messages(browser: Browser, inbox: Inbox) -> None:
    send(inbox, TICKET, "teams")
    browser.open(inbox.url)

    assert "Printer" in articles(browser, 1)[0]


def test_markup_in_a_message_stays_text(browser: Browser, inbox: Inbox) -> None:
    nasty = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
    browser.open(inbox.url)
    send(
        inbox,
        Message(heading=nasty, title=nasty, facts=(Fact(nasty, nasty),), link="javascript:alert(1)"),
        "slack",
    )
    send(inbox, Message(heading=nasty[:140], title=nasty), "teams")

    articles(browser, 2)

    assert browser.run("return document.title") == "Inbox · cdc-tasks"
    assert (
        browser.run("return document.querySelectorAll('article img, article script, article a[href]').length")
        == 0
    )


def test_the_page_loads_nothing_from_other_hosts_and_logs_no_problem(browser: Browser, inbox: Inbox) -> None:
    browser.problems()
    browser.open(inbox.url)
    send(inbox, TICKET, "slack", "teams")
    articles(browser, 2)

    assert {f"http://{host}" for host in browser.hosts} == {inbox.url}
    assert browser.problems() == []
