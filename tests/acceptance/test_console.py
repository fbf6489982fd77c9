"""The console, as a person meets it in a browser, beside a listener and a worker on real servers."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import pytest

from harness.server_process import free_port
from harness.waiting import at_most, wait_until
from tests.acceptance.desk import Desk, running_desk
from tests.conftest import fresh_database
from tests.support.browser import Browser
from tests.support.social_stub import Error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.embedded_servers import PostgresServer

_CHECKOUT = Path(__file__).resolve().parents[2]
_PAGES = ("/", "/changes", "/routes", "/failing", "/queues", "/backfills", "/record")
_CLICK = """
const [words, where] = arguments;
const within = where ? [...document.querySelectorAll('tr')].filter((row) => row.innerText.includes(where)) : [document];
const button = within.flatMap((each) => [...each.querySelectorAll('button')])
    .find((each) => each.innerText.trim() === words);
if (!button) { return false; }
window.confirm = () => true;
button.click();
return true;
"""
_CHOOSE = "document.querySelectorAll('input[name=id]').forEach((each) => { each.checked = true; })"


@dataclass(frozen=True)
class Console:
    """A console that runs, at this address."""

    url: str
    environment: dict[str, str]

    def ask(
        self, path: str, *, host: str | None = None, form: dict[str, str] | None = None
    ) -> tuple[int, str]:
        """Return status and text of an answer, as a program without cookies gets it."""
        data = None if form is None else urlencode(form).encode()
        request = urllib.request.Request(
            f"{self.url}{path}", data=data, headers={"Host": host} if host else {}
        )
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                request, timeout=30
            ) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@contextmanager
def running_console(environment: dict[str, str], **more: str) -> Iterator[Console]:
    address = f"127.0.0.1:{free_port()}"
    variables = {**environment, "CDC_CONSOLE_ADDRESS": address, **more}
    command = [sys.executable, "-m", "listener", "console"]
    process = subprocess.Popen(
        command, env={**os.environ, **variables}, cwd=_CHECKOUT, stderr=subprocess.PIPE
    )
    console = Console(f"http://{address}", variables)

    def is_ready() -> bool:
        assert process.poll() is None, process.communicate()[1].decode()
        try:
            return console.ask("/livez")[0] == 200
        except OSError:
            return False

    try:
        wait_until(is_ready, timeout=20, what="the console")
        yield console
    finally:
        process.terminate()
        process.communicate(timeout=at_most(20))


@pytest.fixture(scope="module")
def desk(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    journal = str(tmp_path_factory.mktemp("journal"))
    with fresh_database(postgres_server) as database, running_desk(database, CDC_JOURNAL=journal) as running:
        yield running


@pytest.fixture(scope="module")
def console(desk: Desk) -> Iterator[Console]:
    with running_console(desk.environment) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


def see(browser: Browser, console: Console, path: str, words: str) -> str:
    """Open a page until it has these words, and return its text."""

    def text() -> str | None:
        browser.open(f"{console.url}{path}")
        return shown if words in (shown := browser.text) else None

    return wait_until(text, timeout=20, every=0.2, what=f"{words!r} on {path}")


def click(browser: Browser, label: str, *, row: str | None = None) -> None:
    """Press a button, in the line of a table that has these words, and wait for what comes of it."""
    assert browser.run(_CLICK, label, row), f"no button {label!r} in {browser.text}"
    wait_until(
        lambda: browser.run("return document.querySelector('.told') !== null"), timeout=20, what="the answer"
    )


def test_every_page_fits_a_telephone_and_loads_nothing_from_elsewhere(
    browser: Browser, console: Console
) -> None:
    browser.resize(390, 844)
    for path in _PAGES:
        browser.open(f"{console.url}{path}")
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth"), path
        assert browser.hosts <= {console.url.removeprefix("http://")}, path
        assert not browser.problems(), path
    browser.resize(1100, 1400)
    assert "All is well" in see(browser, console, "/", "All is well")


def test_what_came_last_says_what_it_fired_and_why_not(
    browser: Browser, console: Console, desk: Desk
) -> None:
    desk.insert_ticket("Shown in the console", desk.ANNA)
    desk.database.execute("UPDATE tickets SET description = 'x' WHERE title = 'Shown in the console'")

    page = see(browser, console, "/changes?table=tickets", "update public.tickets")
    assert "not cdc_tasks.notify_ticket_update:" in page
    assert "Shown in the console" in page
    assert "No change is found" in see(browser, console, "/changes?row=4711", "Find")


def test_what_came_last_is_seen_without_any_setting(browser: Browser, desk: Desk) -> None:
    desk.insert_ticket("Seen at once", desk.ANNA)
    ((ticket,),) = desk.database.fetch("SELECT id FROM tickets WHERE title = 'Seen at once'")
    environment = {name: value for name, value in desk.environment.items() if name != "CDC_JOURNAL"}
    with running_console(environment) as console:
        page = see(
            browser, console, "/changes?table=tickets&event=insert", f"insert public.tickets id={ticket}"
        )
        assert "cdc_tasks.notify_ticket_insert" in page
        assert "not cdc_tasks.notify_ticket_update: it is for update" in page
        # From a line to all that happened to its row.
        assert browser.run(
            "const found = [...document.querySelectorAll('a')].find((each) => each.innerText === arguments[0]);"
            "if (found) { found.click(); } return Boolean(found);",
            f"id={ticket}",
        )
        wait_until(lambda: "row=" in browser.run("return location.search"), what="the changes of the row")
        assert f"insert public.tickets id={ticket}" in see(
            browser, console, f"/changes?row={ticket}", "tickets"
        )
        assert "Values of rows are only in a journal" in browser.text
        assert "No change is found" in see(browser, console, "/changes?row=4711", "Find")
        assert "is not a time" in see(browser, console, "/changes?since=soon", "is not a time")


def test_a_dead_letter_is_read_replayed_and_recorded(browser: Browser, console: Console, desk: Desk) -> None:
    desk.social.fail("C0DORA", Error("invalid_auth"))
    desk.insert_ticket("From the console", desk.DORA)

    assert "1 task has given up" in see(browser, console, "/", "given up")
    assert "invalid_auth" in see(browser, console, "/failing", "cdc_tasks.deliver")
    browser.run(_CHOOSE)
    click(browser, "Replay what is chosen")

    desk.wait_for_messages("From the console", ("C0DORA", "New Ticket"))
    assert "letter replay" in see(browser, console, "/record", "Sent to cdc_tasks.deliver")


def test_a_route_is_paused_and_resumed(browser: Browser, console: Console, desk: Desk) -> None:
    see(browser, console, "/routes", "notify_ticket_insert")
    click(browser, "Pause", row="notify_ticket_insert")
    assert "paused by" in see(browser, console, "/routes", "paused by")
    desk.insert_ticket("Held back", desk.PAUL)
    see(browser, console, "/", "waits beside the queue")

    see(browser, console, "/routes", "notify_ticket_insert")
    click(browser, "Resume", row="notify_ticket_insert")

    wait_until(lambda: desk.messages("Held back"), timeout=30, what="the message that was held back")


def test_a_page_from_elsewhere_can_neither_ask_nor_act(console: Console) -> None:
    assert console.ask("/", host="evil.example")[0] == 421
    assert console.ask("/act/pause", form={"token": "guessed"})[0] == 403
    status, text = console.ask("/failing/letters/unknown")
    assert (status, "There is no dead letter unknown" in text) == (200, True)
    assert console.ask("/nothing")[0] == 404


def test_who_may_only_look_sees_no_row_and_cannot_act(browser: Browser, desk: Desk) -> None:
    passwords = {"CDC_CONSOLE_PASSWORD": "may-do-all", "CDC_CONSOLE_READ_PASSWORD": "may-look"}
    desk.social.fail("C0DORA", Error("invalid_auth"))
    desk.insert_ticket("Not for Rita", desk.DORA)
    with running_console(desk.environment, **passwords) as console:
        enter(browser, console, "wrong-one")
        assert "not the password" in browser.text
        enter(browser, console, "may-look")
        assert "Rita (read only)" in see(browser, console, "/", "Is it well?")
        page = see(
            browser, console, "/changes?table=tickets&row=id=4711", "public.tickets"
        )  # no guess is answered
        assert "Shown in the console" not in page
        assert "id=" not in page
        assert "Pause" not in see(browser, console, "/routes", "notify_ticket_insert")
        assert "invalid_auth" not in see(browser, console, "/failing", "cdc_tasks.deliver")
        post = "return (await fetch('/act/pause', {method: 'POST', body: new URLSearchParams({token: "
        post += "document.querySelector('[name=token]').value})})).status"
        assert browser.run(post) == 403
        click_leave = (
            "[...document.querySelectorAll('button')].find((each) => each.innerText === 'Leave').click()"
        )
        browser.run(click_leave)
        wait_until(lambda: "password" in browser.text, what="the form")
        enter(browser, console, "may-do-all")
        assert "Pause everything" in see(browser, console, "/", "Is it well?")


def enter(browser: Browser, console: Console, password: str) -> None:
    browser.open(f"{console.url}/login")
    browser.run(
        "document.querySelector('[name=name]').value = 'Rita';"
        "document.querySelector('[name=password]').value = arguments[0];"
        "document.querySelector('main form button').click();",
        password,
    )
    wait_until(
        lambda: (
            browser.run("return document.readyState === 'complete' && location.pathname") == "/"
            or "not the password" in browser.text
        ),
        what="what comes of the password",
    )


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"CDC_CONSOLE_ADDRESS": "0.0.0.0:5556"}, "Set CDC_CONSOLE_PASSWORD"),
        ({"CDC_CONSOLE_ADDRESS": "nowhere"}, "Write e.g. 127.0.0.1:5556"),
        ({"CDC_CONSOLE_READ_PASSWORD": "12345678"}, "Set both"),
        ({"CDC_CONSOLE_PASSWORD": "short"}, "CDC_CONSOLE_PASSWORD"),
    ],
)
def test_it_does_not_start_open_to_others(desk: Desk, variables: dict[str, str], words: str) -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "listener", "console"],
        env={**os.environ, **desk.environment, **variables},
        cwd=_CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (refused.returncode, words in refused.stderr) == (1, True), refused.stderr
    assert "short" not in refused.stderr


def test_a_listener_that_is_gone_is_told_in_one_sentence(
    browser: Browser, console: Console, desk: Desk
) -> None:
    desk.programs[-1].kill()
    assert "No listener reads" in see(browser, console, "/", "No listener reads")
