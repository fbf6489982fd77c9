"""Flower in a real browser, with a real listener and a real worker: what it shows, and what it must not."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from base64 import b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import redis

from demo.programs import Flower, Listener, Worker
from harness.embedded_servers import ValkeyServer
from harness.waiting import wait_until
from tests.conftest import Broker
from tests.support.browser import Browser
from tests.support.helpdesk import HelpDesk
from tests.support.social_stub import SocialStub

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Database

_LOGIN = "admin:flower-password"
_CONSOLE = "http://console.example.com"
_TITLE = "Project X"
# No page may contain these: secrets, and data of rows.
_SECRETS = ("database-password", "broker-password", "xoxb-secret", "flower-password")
_ROWS = (_TITLE, "anna@example.com", "Auditor", "on hold")


@dataclass(frozen=True, kw_only=True)
class System:
    """The running system, with passwords for all of its parts."""

    desk: HelpDesk
    flower: Flower
    browser: Browser

    def open(self, path: str) -> None:
        self.browser.open(f"http://{_LOGIN}@127.0.0.1:{self.flower.port}{path}")

    def insert_ticket(self) -> None:
        """Insert a ticket with plain SQL, and wait for its message."""
        self.desk.database.execute("INSERT INTO tickets (title, assigned_to_id) VALUES (%s, 3)", _TITLE)
        wait_until(lambda: self.desk.social.posted, timeout=30, what="the message on Slack")

    def row_of(self, task: str) -> str:
        """Return the row of this task on the page of tasks, once it has succeeded."""
        script = "return [...document.querySelectorAll('tbody tr')].map((row) => row.innerText)"
        return wait_until(
            lambda: next((row for row in self.browser.run(script) if task in row and "SUCCESS" in row), None),
            what=f"{task} with SUCCESS on the page",
        )

    def api(self, path: str, body: dict[str, Any], *, login: str | None = _LOGIN) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if login:
            headers["Authorization"] = f"Basic {b64encode(login.encode()).decode()}"
        request = urllib.request.Request(f"{self.flower.url}{path}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return dict(json.load(answer))


@pytest.fixture
def system(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[System]:
    with (
        ValkeyServer(password="broker-password") as valkey,
        redis.Redis.from_url(valkey.url) as client,
        redis.Redis.from_url(valkey.url_of(1)) as cache,
        SocialStub() as social,
    ):
        desk = HelpDesk.open(database, Broker(server=valkey, client=client, cache=cache), social)
        desk.connect_slack(desk.ANNA, "U0ANNA", "xoxb-secret")
        environment = {
            **desk.environment,
            "DATABASE_URL": database.url.replace("postgres@", "postgres:database-password@"),
            "CDC_NAME": database.name,
            "FLOWER_BASIC_AUTH": _LOGIN,
            "CDC_CONSOLE_URL": _CONSOLE,
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with Worker(), Listener(), Flower() as flower, Browser() as browser:
            yield System(desk=desk, flower=flower, browser=browser)


def test_the_task_of_an_inserted_row_is_seen_with_its_state(system: System) -> None:
    system.insert_ticket()

    system.open("/tasks")
    row = system.row_of("cdc_tasks.notify_ticket_insert")
    system.browser.run("[...document.querySelectorAll('tbody a[href*=\"/task/\"]')].at(-1).click()")
    details = wait_until(
        lambda: text if "Runtime" in (text := system.browser.text) else None, what="the task's own page"
    )

    to_console = system.browser.run("return document.querySelector('.cdc-console a').href")
    task_id = system.browser.run("return location.pathname.split('/').at(-1)")
    assert to_console == f"{_CONSOLE}/tasks/{task_id}"
    assert "SUCCESS" in row
    assert "<public.tickets insert " in row
    assert "1 message queued" in row
    assert "SUCCESS" in details
    assert "<public.tickets insert " in details
    assert "1 message queued" in details


def test_a_cache_refresh_triggered_from_flower_takes_effect(system: System) -> None:
    system.desk.database.execute("INSERT INTO roles (name) VALUES ('Auditor')")
    wait_until(  # the worker filled the missing key when it started
        lambda: b"Auditor" in (system.desk.broker.cache.get("master:roles") or b""),
        timeout=30,
        what="the listener's refresh",
    )
    system.desk.broker.cache.delete("master:roles")

    task = system.api("/api/task/async-apply/cdc_tasks.refresh_master_cache", {"args": ["roles"]})

    cached = wait_until(lambda: system.desk.broker.cache.get("master:roles"), what="the key of the cache")
    assert [role["name"] for role in json.loads(cached)] == ["Auditor"]

    def has_succeeded() -> bool:
        system.open(f"/task/{task['task-id']}")  # it does not change once it is loaded
        return "SUCCESS" in system.browser.text

    wait_until(has_succeeded, every=0.2, what="the task's state on its page")


def test_nobody_triggers_a_task_without_the_password(system: System) -> None:
    for login in (None, "admin:wrong"):
        with pytest.raises(urllib.error.HTTPError) as raised:
            system.api(
                "/api/task/async-apply/cdc_tasks.refresh_master_cache", {"args": ["roles"]}, login=login
            )
        raised.value.close()
        assert raised.value.code == 401


def test_no_page_shows_a_secret_or_row_data(system: System) -> None:
    database = system.desk.database
    database.execute("INSERT INTO roles (name) VALUES ('Auditor')")
    database.execute("INSERT INTO statuses (name) VALUES ('on hold')")
    system.insert_ticket()
    database.execute("UPDATE tickets SET status = 'on hold'")
    wait_until(lambda: len(system.desk.social.posted) == 2, timeout=30, what="the message about the update")
    system.open("/tasks")
    system.row_of("cdc_tasks.notify_ticket_update")
    links = "return [...document.querySelectorAll('tbody a')].map((each) => new URL(each.href).pathname)"
    paths = ["/tasks", "/workers", "/broker", *system.browser.run(links)]
    system.open("/workers")
    paths += system.browser.run(links)

    assert len(paths) > 5
    for path in paths:
        system.open(path)
        source = wait_until(lambda: system.browser.source, what=path)
        assert [words for words in (*_SECRETS, *_ROWS) if words in source] == [], path
