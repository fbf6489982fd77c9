"""What operators read and do in the console day by day: messages, rates, replays, the record; on few connections."""

from __future__ import annotations

import html
import json
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from contextlib import ExitStack
from http.cookiejar import CookieJar
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2
import pytest
import redis

from harness.listener_process import ListenerProcess
from harness.waiting import wait_until
from harness.worker import Worker
from tests.acceptance.desk import Desk, running_desk
from tests.acceptance.test_console import running_console
from tests.conftest import fresh_database
from tests.support.listening import wait_for_listener
from tests.support.social_stub import Error, Status
from tests.support.tasks.in_order import LOG
from tests.support.warm_python import WARM

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from harness.embedded_servers import PostgresServer
    from harness.machine_servers import RabbitMQServer
    from tests.acceptance.test_console import Console
    from tests.conftest import Broker

_CHECKOUT = Path(__file__).resolve().parents[2]
_NOON_TO_NOON = "00:00', '23:59:59.999999"


class Visitor:
    """A person in front of the console, with cookies."""

    def __init__(self, console: Console) -> None:
        self._url = console.url
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(CookieJar())
        )

    def page(self, path: str, **form: str | list[str]) -> str:
        """Return the text of a page, or of what comes of a form, without its tags."""
        data = urllib.parse.urlencode(form, doseq=True).encode() if form else None
        try:
            with self._opener.open(f"{self._url}{path}", data=data, timeout=60) as answer:
                found = answer.read().decode()
        except urllib.error.HTTPError as error:
            found = error.read().decode()
        self.source = found
        return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", found)))

    def sees(self, path: str, *words: str) -> str:
        """Load a page until it has these words."""

        def text() -> str | None:
            found = self.page(path)
            return found if all(word in found for word in words) else None

        return wait_until(text, timeout=30, every=0.2, what=f"{words!r} on {path}")

    def acts(self, verb: str, *, page: str = "/backfills", **form: str | list[str]) -> str:
        """Send a form of a page, and return what the console answers."""
        self.page(page)
        token = re.search(r'name="token" value="([^"]+)"', self.source)
        return self.page(f"/act/{verb}", token=token[1] if token else "", back=page, **form)

    def enters(self, password: str) -> None:
        """Show a password."""
        self.page("/login")
        token = re.search(r'name="token" value="([^"]+)"', self.source)
        assert token
        self.page("/login", token=token[1], name="Rita", password=password)


@pytest.fixture(scope="module")
def desk(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    journal = str(tmp_path_factory.mktemp("journal"))
    with (
        fresh_database(postgres_server) as database,
        running_desk(database, CDC_JOURNAL=journal, CDC_FLOWER_URL="http://flower.test") as running,
    ):
        yield running


@pytest.fixture(scope="module")
def console(desk: Desk) -> Iterator[Console]:
    with running_console(desk.environment) as running:
        yield running


@pytest.fixture
def visitor(console: Console) -> Visitor:
    return Visitor(console)


def test_who_got_what_after_which_tries_and_what_is_held_back(visitor: Visitor, desk: Desk) -> None:
    desk.database.execute(
        "INSERT INTO notification_preferences (user_id, quiet_from, quiet_until)"
        f" VALUES ({desk.PAUL}, '{_NOON_TO_NOON}')"
    )
    desk.social.fail("C0ANNA", Status(503))
    desk.social.fail("C0DORA", Error("invalid_auth"))
    for person in (desk.ANNA, desk.DORA, desk.PAUL):
        desk.insert_ticket("Not for the record", person)

    page = visitor.sees("/messages", "quiet hours", "gave up: RefusedError", "Vera")
    assert "Not for the record" not in page
    assert "xoxb" not in page
    assert desk.social.teams_url("anna") not in page
    page = visitor.sees("/messages?person=anna%40example.com&service=slack", "new ticket", "sent 2")
    assert ("Dora" in page, "slack (account 1), teams (account 2)" in page) == (False, True)
    (one,) = set(re.findall(r'href="(/messages/\d+-\d+)"', visitor.source))
    assert "1. try: UnavailableError" in visitor.page(one)
    assert re.search(r'href="http://flower\.test/task/[\w-]{36}"', visitor.source)

    page = visitor.page("/messages?person=paul%40example.com")
    assert "held back by" in page
    assert "Quiet hours until" in page
    assert "There is no user nobody@example.com" in visitor.page("/messages?person=nobody%40example.com")
    (dead,) = set(
        re.findall(r'href="(/messages/\d+-\d+)"', visitor.page("/messages?state=gave+up") and visitor.source)
    )
    assert "Its dead letter" in visitor.page(dead)


def test_the_reader_of_messages_sees_no_person_and_the_page_needs_no_table(desk: Desk) -> None:
    desk.insert_ticket("Sent", desk.ANNA)
    url = desk.environment["DATABASE_URL"].rpartition("/")[0] + "/postgres"
    passwords = {"CDC_CONSOLE_PASSWORD": "may-do-all", "CDC_CONSOLE_READ_PASSWORD": "may-look"}
    with running_console({**desk.environment, "CDC_DATABASE_URL": url}, **passwords) as console:
        reader, boss = Visitor(console), Visitor(console)
        reader.enters("may-look")
        page = reader.sees("/messages", "slack", "hidden")
        assert not any(name in page for name in ("Anna", "anna@", "account 1", "Not for the record"))
        boss.enters("may-do-all")
        page = boss.sees("/messages", "account 1")
        assert "There are no names here" in page
        assert "connected_accounts" in page


def test_an_application_without_messages_is_told_how_to_have_them(desk: Desk) -> None:
    broker, cache = desk.environment["CELERY_BROKER_URL"], desk.environment["CACHE_URL"]
    theirs = {"CDC_APP": "tests.support.tasks.shop:app", "SHOP_BROKER": broker, "SHOP_NOTES": broker}
    empty = f"{cache.rpartition('/')[0]}/2"
    with running_console({**desk.environment, **theirs, "CDC_CACHE_URL": empty}) as console:
        page = Visitor(console).page("/messages")
        assert "Nothing has sent one" in page
        assert "cdc_tasks.notify" in page
        assert "Failing Queues and cache" in page  # the page is not among the others


def test_a_route_is_replayed_from_its_page(visitor: Visitor, desk: Desk) -> None:
    desk.insert_ticket("Once more", desk.ANNA)
    desk.wait_for_messages("Once more", ("C0ANNA", "New Ticket"), ("anna", "New Ticket"), *_managers())
    visitor.page("/routes")
    path = re.search(r'notify_ticket_insert.*?href="(/routes/[\w-]+/replay)"', visitor.source, re.DOTALL)
    assert path
    route = path[1].split("/")[2]
    assert "committed from" in visitor.page(path[1])

    wrong = visitor.acts("replay", route=route, since="soon", until="now")
    assert "'soon' is not a time. Write now, 14:00" in wrong
    assert "is not later than" in visitor.acts(
        "replay", route=route, since="now", until="2020-01-01T00:00+00:00"
    )
    assert "is not a rate" in visitor.acts("replay", route=route, since="00:00", until="now", rate="0")
    assert "No route has the task or the id x" in visitor.acts(
        "replay", route="x", since="00:00", until="now"
    )
    assert "no table" in visitor.acts("backfill", route=route, table="no_such_table").lower()
    (since,) = desk.database.fetch("SELECT now() - interval '5 seconds'")[0]
    form = {"since": since.isoformat(), "until": "now", "row": "title=Once more", "new_ids": "yes"}
    told = visitor.acts("replay", route=route, table="tickets", accept_gap="yes", **form)
    assert "Replay" in told
    wait_until(lambda: len(desk.messages("Once more")) >= 8, timeout=30, what="the messages once more")
    assert "replay" in visitor.page("/record?what=replay")


def _managers() -> list[tuple[str, str]]:
    return [("C0MONA", "Manager: New Ticket"), ("vera", "Manager: New Ticket")]


def test_the_record_has_what_the_command_line_does_too(visitor: Visitor, desk: Desk) -> None:
    desk.social.fail("C0DORA", Error("invalid_auth"))
    desk.insert_ticket("For the record", desk.DORA)
    visitor.sees("/failing", "cdc_tasks.deliver", "RefusedError")
    for arguments in (["dead-letters", "replay", "--all"], ["refresh-cache", "statuses"]):
        done = _run(desk.environment, "cdc_tasks", *arguments)
        assert done.returncode == 0, done.stderr
    assert _run(desk.environment, "cdc_tasks", "keys", "skip", "account:4711").returncode == 1
    assert _run(desk.environment, "listener", "parked", "drop", "no-such-id").returncode == 1

    page = visitor.sees("/record", "letter replay", "refresh cache", "key skip", "parked drop")
    assert "No message has the key 'account:4711'" in page
    assert "no-such-id is not parked" in page
    assert f"{os.environ.get('USER', 'root')}@" in page
    only = visitor.page("/record?what=refresh+cache&who=@")
    assert ("statuses" in only, "letter replay" in only) == (True, False)
    assert "Nothing of that kind" in visitor.page("/record?who=nobody-of-this-name")
    assert "refresh_cache" in _run(desk.environment, "listener", "commands").stdout

    cache = visitor.sees("/queues", "master:statuses", "rows")
    assert re.search(r"master:statuses\s+\d+ rows", cache)
    assert re.search(r"statuses .*? ago \w+@", cache)


def test_a_hundred_thousand_messages_do_not_make_the_page_slow(visitor: Visitor, desk: Desk) -> None:
    about = {"id": "x", "account_id": 6, "kind": "new_ticket", "subject_id": 1, "change_id": "c"}
    note = json.dumps({**about, "service": "slack", "state": "sent"}, separators=(",", ":"))
    with desk.cache.pipeline(transaction=False) as pipeline:
        for _ in range(100_000):
            pipeline.xadd("cdc:messages", {"note": note})
        pipeline.execute()
    try:
        desk.cache.config_resetstat()
        assert "None is found among the last 20,000" in visitor.page("/messages?person=vera%40example.com")
        calls = desk.cache.info("commandstats")["cmdstat_xrevrange"]["calls"]
        assert calls <= 15
        assert "Dora" in visitor.page("/messages")
        assert visitor.source.count("<tr>") < 250
        assert "Earlier messages" in visitor.page("/messages?behind=" + _older(visitor))
    finally:
        desk.cache.xtrim("cdc:messages", maxlen=0)


def _older(visitor: Visitor) -> str:
    found = re.search(r"behind=([\d-]+)", visitor.source)
    assert found
    return found[1]


def test_each_route_has_its_rate_and_its_policy(visitor: Visitor, desk: Desk) -> None:
    """The listener counts since soon after the console began, so the tests before this one have been counted too."""
    desk.insert_ticket("Counted", desk.CARL)

    def fired() -> int:
        found = re.search(r"notify_ticket_insert .*? ([\d,]+) in the last hour", visitor.page("/routes"))
        return int(found[1]) if found else 0

    wait_until(fired, timeout=20, every=0.3, what="a ticket to be counted")
    page = visitor.page("/routes")
    assert "if its queue is full: pause" in page
    assert "coalesce" in page
    visitor.sees("/", "tasks a second", "public.tickets → cdc_tasks.notify_ticket_insert")


def test_fifty_pages_open_few_connections(visitor: Visitor, desk: Desk) -> None:
    pages = ("/", "/routes", "/failing", "/messages", "/queues", "/backfills", "/record")
    for path in pages:
        visitor.page(path)  # what is kept is opened now
    before = _connections(desk)
    for number in range(50):
        assert "The console has failed" not in visitor.page(pages[number % len(pages)])
    opened = [after - earlier for after, earlier in zip(_connections(desk), before, strict=True)]
    assert max(opened) < 15, f"opened {opened[0]} connections to Redis and {opened[1]} to the database"

    with redis.Redis.from_url(desk.environment["CELERY_BROKER_URL"]) as client:
        client.client_kill_filter(_type="normal", skipme=True)
    desk.database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    for path in pages:
        visitor.page(path)
        assert 'class="away"' not in visitor.source.replace('id="connection" class="away"', ""), path


def _connections(desk: Desk) -> tuple[int, int]:
    """Return how many connections were opened so far: to Redis, and to the database."""
    with redis.Redis.from_url(desk.environment["CELERY_BROKER_URL"]) as client:
        stats: dict[str, int] = client.info("stats")
    with psycopg2.connect(desk.environment["DATABASE_URL"]) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_force_next_flush()")
        cursor.execute("SELECT sessions FROM pg_stat_database WHERE datname = current_database()")
        row = cursor.fetchone()
        assert row
    return int(stats["total_connections_received"]), int(row[0])


def test_on_rabbitmq_too_what_failed_is_read_sent_again_and_let_go_on(
    postgres_server: PostgresServer, rabbitmq_server: RabbitMQServer, broker: Broker
) -> None:
    with fresh_database(postgres_server) as database, ExitStack() as stack:
        database.execute("CREATE TABLE notes (id bigint PRIMARY KEY, author text)")
        environment = {
            "DATABASE_URL": database.url,
            "CELERY_BROKER_URL": rabbitmq_server.url,
            "CACHE_URL": broker.cache_url,
            "CDC_NAME": database.name,
            "CDC_ROUTES": "tests.support.routes.for_console:failing",
            "CDC_TASK_MODULES": "tests.support.tasks.in_order",
        }
        stack.enter_context(ListenerProcess(environment))
        wait_for_listener(database, timeout=30)
        database.execute("INSERT INTO notes VALUES (1, 'anna'), (2, 'anna'), (3, 'anna')")
        stack.enter_context(Worker(environment))
        visitor = Visitor(stack.enter_context(running_console(environment)))

        page = visitor.sees("/failing", "ValueError: broken", "KeyError", "anna", "failed : replay or drop")
        letter, parked = _ids(visitor, "letters")[0], _ids(visitor, "parked")
        assert len(parked) == 3
        assert "raise ValueError" in visitor.page(f"/failing/letters/{letter}")
        assert "no_such_column" in visitor.page(f"/failing/parked/{parked[0]}")
        assert re.search(r"cdc_\w+ \d+ ", visitor.page("/queues"))

        assert "Stays parked" in visitor.acts("parked_replay", page="/failing", id=parked[0])
        assert "2 items dropped" in visitor.acts("parked_drop", page="/failing", id=parked[:2])
        done = _run(environment, "listener", "parked", "drop", "--all")
        assert done.returncode == 0, done.stderr
        broker.cache.set("cured", 1)
        assert "Sent to in_order.breaks" in visitor.acts("letter_replay", page="/failing", id=letter)
        wait_until(
            lambda: b"ends anna 3" in broker.cache.lrange(LOG, 0, -1), timeout=30, what="the key to go on"
        )

        broker.cache.delete("cured")
        database.execute("INSERT INTO notes VALUES (4, 'bert'), (5, 'bert')")
        page = visitor.sees("/failing", "bert", "failed : replay or drop")
        (key,) = {html.unescape(each) for each in re.findall(r'value="([^"]+ [^"]*bert)"', visitor.source)}
        assert "The key goes on" in visitor.acts("key_skip", page="/failing", id=key)
        wait_until(
            lambda: b"fails bert 5" in broker.cache.lrange(LOG, 0, -1), timeout=30, what="the key to go on"
        )
        visitor.sees("/failing", "failed : replay or drop")
        name = key.partition(" ")[2]
        assert _run(environment, "cdc_tasks", "keys", "skip", name).returncode == 0
        page = visitor.sees("/record", "parked drop", "letter replay", "key skip", f"{name} Goes on")
        assert "root" in page or os.environ.get("USER", "") in page


def _ids(visitor: Visitor, kind: str) -> list[str]:
    return list(dict.fromkeys(re.findall(rf'href="/failing/{kind}/([^"]+)"', visitor.source)))


def _run(environment: dict[str, str], module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    return WARM.run(command, cwd=_CHECKOUT, env={**os.environ, **environment})
