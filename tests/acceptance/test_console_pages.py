"""The console's pages for everyone: by keyboard, in the dark, on a telephone, with 10,000 rows and with none."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import redis

from cdc_tasks.changes import EventType, RowChange
from cdc_tasks.dead_letters.store import DeadLetter
from harness.waiting import wait_until
from tests.acceptance.desk import Desk, running_desk
from tests.acceptance.test_console import Console, running_console, see
from tests.conftest import fresh_database
from tests.support.browser import Browser
from tests.support.page_checks import faults_of
from tests.support.social_stub import Error

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.embedded_servers import PostgresServer

_PAGES = ("/", "/changes", "/routes", "/failing", "/messages", "/queues", "/backfills", "/record")
_MANY = 10_000
_LARGEST = 400_000  # bytes of a page
_MOST_COMMANDS = 6_000  # of Redis, for a page: an answer for each of 10,000 keys would be 40,000
_FOR_QUEUES = 20_000  # of a page with the lengths of 1,000 queues of four priorities, all in one round trip
_FOCUSED = "return document.activeElement.innerText || document.activeElement.tagName"
_FOLLOW = """
const link = [...document.querySelectorAll('a')].find((each) => each.innerText.trim() === arguments[0]);
if (!link) { return false; }
link.click();
return true;
"""


@pytest.fixture(scope="module")
def desk(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A desk on which a ticket was inserted and changed, and a message to Dora was refused."""
    journal = str(tmp_path_factory.mktemp("journal"))
    with fresh_database(postgres_server) as database, running_desk(database, CDC_JOURNAL=journal) as running:
        running.social.fail("C0DORA", Error("invalid_auth"))
        running.insert_ticket("Printer on fire", running.ANNA)
        running.insert_ticket("No network", running.DORA)
        running.database.execute("UPDATE tickets SET description = 'x' WHERE title = 'Printer on fire'")
        wait_until(lambda: running.cache.hlen("cdc:dead-letters"), timeout=30, what="the dead letter")
        yield running


@pytest.fixture(scope="module")
def console(desk: Desk) -> Iterator[Console]:
    with running_console(desk.environment) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


def the_letter(desk: Desk) -> str:
    (found,) = desk.cache.hkeys("cdc:dead-letters")
    return bytes(found).decode()


def path_of(browser: Browser) -> str:
    return str(browser.run("return location.pathname + location.search"))


def press_until(browser: Browser, words: str) -> None:
    """Press Tab until the element with these words has the focus."""
    for _ in range(80):
        browser.press("TAB")
        if browser.run(_FOCUSED) == words:
            return
    raise AssertionError(f"Tab does not lead to {words!r}")


def test_every_page_can_be_read_in_light_and_dark_and_on_a_telephone(
    browser: Browser, console: Console, desk: Desk
) -> None:
    letter = the_letter(desk)
    pages = (*_PAGES, f"/failing/letters/{letter}", f"/tasks/{letter}", "/tasks/no-such", "/nothing")
    see(browser, console, "/changes", "update public.tickets")
    faults = []
    for scheme, width in (("light", 1100), ("dark", 390)):
        browser.prefer(scheme)
        browser.resize(width, 900)
        for path in pages:
            browser.open(f"{console.url}{path}")
            faults += [f"{path} {scheme} {width}: {fault}" for fault in faults_of(browser)]
    browser.prefer("light")
    browser.resize(1100, 1400)
    assert faults == []


def test_a_route_is_paused_by_keyboard_alone(browser: Browser, console: Console) -> None:
    browser.open(f"{console.url}/routes")
    browser.press("TAB")
    assert browser.run(_FOCUSED) == "Skip to the page"
    assert browser.run("return document.activeElement.getBoundingClientRect().left >= 0")
    browser.press("ENTER", "TAB")
    assert browser.run("return document.activeElement.closest('main') !== null")
    assert browser.run("return getComputedStyle(document.activeElement).outlineStyle") != "none"
    if browser.run(_FOCUSED) != "Pause":
        press_until(browser, "Pause")

    browser.press("ENTER")

    wait_until(
        lambda: (
            "paused by" in browser.text and browser.run("return document.querySelector('.told') !== null")
        ),
        timeout=20,
        what="the pause",
    )
    press_until(browser, "Resume")
    browser.press("SPACE")
    wait_until(lambda: "paused by" not in browser.text, timeout=20, what="the end of the pause")


def test_a_refresh_takes_neither_the_focus_nor_what_was_filled_in(browser: Browser, console: Console) -> None:
    browser.open(f"{console.url}/")
    press_until(browser, "Load the routes again")
    browser.run("await refresh()")
    assert browser.run(_FOCUSED) == "Load the routes again"
    assert "Not refreshed while you act on this page" in browser.text

    browser.press("ESCAPE")
    browser.run("document.querySelector('main dl').remove(); await refresh()")
    assert browser.run("return document.querySelector('main dl') !== null"), "it was not refreshed"
    browser.run("document.querySelector('main h1').kept = true; await refresh()")
    assert browser.run("return document.querySelector('main h1').kept"), "what is the same is another element"

    browser.open(f"{console.url}/backfills")
    press_until(browser, "A new backfill")
    browser.press("ENTER", "TAB", "t", "i", "c")
    browser.run("await refresh()")
    assert browser.run("return document.activeElement.value") == "tic"


_BEHIND = """
return [...document.querySelectorAll('dt')].some((each) =>
    each.innerText === 'behind' && / s$/.test(each.nextElementSibling.innerText))
"""


@pytest.mark.parametrize(
    ("links", "words"),
    [
        pytest.param((), "A listener reads", id="is it working"),
        pytest.param((), None, id="how far behind is it"),
        pytest.param(("Changes",), "update public.tickets", id="what came last"),
        pytest.param(("Changes",), "not cdc_tasks.notify_ticket_update: ", id="why did my change not fire"),
        pytest.param(("Failing",), "invalid_auth", id="what failed"),
        pytest.param(("Failing", "THE LETTER"), "Traceback", id="what failed, and where"),
        pytest.param(("Messages",), "anna@example.com", id="who got which message"),
        pytest.param(("Messages", "new ticket 1"), "History", id="and after which tries"),
        pytest.param(("Queues and cache",), "cdc_notifications", id="what waits"),
        pytest.param(("Routes",), "cdc_tasks.notify_ticket_insert", id="which routes are there"),
    ],
)
def test_each_question_is_answered_behind_two_links_at_most(
    browser: Browser, console: Console, desk: Desk, links: tuple[str, ...], words: str | None
) -> None:
    see(browser, console, "/", "1 task has given up")
    for link in links:
        before = path_of(browser)
        assert browser.run(_FOLLOW, the_letter(desk) if link == "THE LETTER" else link), link
        wait_until(lambda: path_of(browser) != before, what=f"the page behind {link}")  # noqa: B023
    wait_until(
        lambda: browser.run(_BEHIND) if words is None else words in browser.text,
        timeout=20,
        what=f"{words!r}",
    )


def test_the_field_at_the_top_finds_tasks_rows_and_tables(
    browser: Browser, console: Console, desk: Desk
) -> None:
    letter = the_letter(desk)
    for words, place in (
        ("tickets", "/changes?table=tickets"),
        ("public.tickets 1", "/changes?table=public.tickets&row=1"),
        ("tickets#2", "/changes?table=tickets&row=2"),
        ("17", "/changes?row=17"),
        ("email=a@b.de", "/changes?row=email%3Da%40b.de"),
    ):
        browser.open(f"{console.url}/")
        browser.run("document.querySelector('#find').focus()")
        browser.press(*words, "ENTER")
        wait_until(lambda: path_of(browser) == place, timeout=20, what=f"{place} for {words}")  # noqa: B023
    browser.run("document.querySelector('#find').focus()")
    browser.press(*letter, "ENTER")
    wait_until(lambda: "It gave up" in browser.text, timeout=20, what="the page of the task")
    assert "Which change it came from" in browser.text


def test_the_page_of_a_task_says_which_change_it_came_from(
    browser: Browser, console: Console, desk: Desk
) -> None:
    """As the link from Flower does: Flower has the ids of tasks that have ended."""
    router_task = change_task(desk, "Printer on fire")
    see(
        browser, console, f"/tasks/{router_task}", "found in recent changes"
    )  # noted a second after the commit
    assert "cdc_tasks.notify_ticket_insert" in browser.text
    assert "insert public.tickets, committed" in browser.text
    assert "not cdc_tasks.notify_ticket_update: it is for" in browser.text
    assert browser.run(_FOLLOW, "All that happened to this row")
    wait_until(
        lambda: "Printer on fire" in browser.text and "update public.tickets" in browser.text,
        timeout=20,
        what="the row's changes",
    )


def change_task(desk: Desk, title: str) -> str:
    """Return the id of the task that the insert of a ticket has fired."""
    from listener.control.journal.file import journal_path
    from listener.control.journal.reader import JournalReader
    from listener.core.history import Selection
    from listener.routes import setup_router

    reader = JournalReader(journal_path(desk.environment["CDC_JOURNAL"], desk.environment["CDC_NAME"]))
    change = next(
        each
        for _, each in reader.changes(Selection())
        if each is not None and each.event is EventType.INSERT and each.row.get("title") == title
    )
    route = next(each for each in setup_router().routes if each.task == "cdc_tasks.notify_ticket_insert")
    return f"{change.id}-{route.id}"


def test_with_10_000_of_each_a_page_stays_small_and_says_how_many_more_there_are(
    browser: Browser, desk: Desk, tmp_path: Path
) -> None:
    (tmp_path / "many_routes.py").write_text(_MANY_ROUTES)
    (tmp_path / "many_queues.py").write_text(_MANY_QUEUES)
    many = {"CDC_ROUTES": "many_routes:setup_router", "CELERY_CONFIG_MODULE": "many_queues"}
    broker = redis.Redis.from_url(desk.environment["CELERY_BROKER_URL"])
    fill(broker, desk)
    desk.database.execute(
        f"INSERT INTO departments (name) SELECT 'd' || i FROM generate_series(1, {_MANY}) AS i"
    )
    paths = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with running_console(desk.environment, **many, PYTHONPATH=paths) as console:
        shown = {}
        for path in (*_PAGES, "/routes?from=900", "/queues?from=900"):
            before = broker.info("stats")["total_commands_processed"]
            status, shown[path] = console.ask(path)
            assert status == 200, path
            assert len(shown[path].encode()) < _LARGEST, (path, len(shown[path]))
            commands = broker.info("stats")["total_commands_processed"] - before
            assert commands < (_FOR_QUEUES if path.startswith(("/routes", "/queues")) else _MOST_COMMANDS), (
                path
            )
        assert shown["/failing"].count("more are not shown") == 3
        assert "9,900 more are not shown; these are the newest of 1,000" in shown["/failing"]
        assert "1 to 100 of 1,000" in shown["/routes"]
        assert "901 to 1,000 of 1,000" in shown["/routes?from=900"]
        assert re.search(r"901 to 1,000 of 1,0\d\d", shown["/queues?from=900"]), shown["/queues?from=900"]
        assert "10,001" in shown["/"]
        browser.open(f"{console.url}/failing")
        assert browser.run("return document.querySelectorAll('main tr').length") == 303
        browser.open(f"{console.url}/routes")
        assert browser.run(_FOLLOW, "Those behind")
        wait_until(lambda: "101 to 200 of 1,000" in browser.text, timeout=20, what="the routes behind")
    broker.close()


_MANY_ROUTES = """
from cdc_tasks import BinlogRouter, EventType

def setup_router(schema="public"):
    router = BinlogRouter()
    for number in range(1_000):
        router.register(schema, f"table_{number:03}", EventType.ALL, f"app.task_{number}", queue=f"queue_{number:03}")
    return router
"""


_MANY_QUEUES = """
from cdc_tasks.config.celery import *
from kombu import Queue

task_queues = [*task_queues, *(Queue(f"queue_{number:03}") for number in range(1_000))]
"""


def fill(broker: redis.Redis, desk: Desk) -> None:
    """Put 10,000 parked changes, dead letters and held keys where the console reads them."""
    now = datetime.now(UTC)
    with broker.pipeline() as pipe:
        for number in range(_MANY):
            change = RowChange(
                id=f"c-{number}",
                schema="public",
                table="tickets",
                event=EventType.UPDATE,
                before={"id": number},
                after={"id": number},
                position="0/1:0",
                committed_at=now - timedelta(seconds=number),
            )
            record = {
                "task": "app.task_1",
                "route": "abcdef12",
                "error": "ValueError: no",
                "parked_at": now.isoformat(),
                "change": change.to_message(),
            }
            pipe.hset(
                f"cdc:{desk.environment['CDC_NAME']}:parked", f"c-{number}-abcdef12", json.dumps(record)
            )
            owner = [f"tag-{number}", f"id-{number}", "app.task_2", 1_700_000_000 + number, "held"]
            pipe.hset("cdc:keys", f"key-{number}", json.dumps(owner))
            pipe.sadd("cdc:keys:held-up", f"key-{number}")
        pipe.execute()
    with desk.cache.pipeline() as pipe:
        for number in range(_MANY):
            letter = DeadLetter(
                id=f"letter-{number}",
                task="app.task_3",
                args=[number],
                kwargs={},
                queue="q",
                error="ValueError: no",
                traceback="Traceback …\n" * 30,
                failed_at=now.isoformat(),
                worker="w",
            )
            pipe.hset("cdc:dead-letters", letter.id, json.dumps(asdict(letter)))
        pipe.hset("cdc:dead-letters:by-task", "app.task_3", str(_MANY))
        pipe.execute()


def test_where_nothing_answers_each_page_says_what_to_do(desk: Desk) -> None:
    away = {
        "DATABASE_URL": "postgresql://127.0.0.1:1/away",
        "CELERY_BROKER_URL": "redis://127.0.0.1:1/0",
        "CACHE_URL": "redis://127.0.0.1:1/1",
    }
    with running_console(desk.environment, **away) as console:
        shown = {path: console.ask(path) for path in (*_PAGES, "/tasks/unknown")}
        assert {path: status for path, (status, _) in shown.items() if status != 200} == {}
        assert "Not known" in shown["/"][1]
        for path in ("/", "/failing", "/queues", "/backfills", "/record"):
            assert "CELERY_BROKER_URL" in shown[path][1] or "CACHE_URL" in shown[path][1], shown[path][1]


def test_where_nothing_has_happened_yet_each_page_says_what_would_be_there(desk: Desk) -> None:
    fresh = {
        "CDC_NAME": "nothing_yet",
        "CELERY_BROKER_URL": desk.environment["CELERY_BROKER_URL"].replace("/0", "/7"),
    }
    fresh["CACHE_URL"] = fresh["CELERY_BROKER_URL"].replace("/7", "/8")
    with running_console({**desk.environment, **fresh}) as console:
        shown = {path: console.ask(path)[1] for path in _PAGES}
    assert "No listener reads" in shown["/"]
    assert "A change is parked if" in shown["/failing"]
    assert "A backfill sends the rows" in shown["/backfills"]
    assert "Nobody has done anything yet" in shown["/record"]
