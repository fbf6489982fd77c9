"""`check`, and each worker when it starts, report other workers that harm ours, with a hint."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import Celery

from cdc_tasks.broker.other_workers import foreign_workers, queues_taken, unacked_by_kombu
from harness.waiting import at_most, wait_until
from harness.worker import Worker, unacknowledged
from listener.core.findings import Finding, State
from listener.publish.check_broker import check_broker
from listener.router import BinlogRouter, EventType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.helpdesk import HelpDesk

_CHECKOUT = Path(__file__).resolve().parents[3]


@contextmanager
def _house_worker(helpdesk: HelpDesk, queues: str) -> Iterator[None]:
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "tests.support.tasks.stock",
        "worker",
        "-c1",
        "-Q",
        queues,
        "-n",
        "house@%h",
    ]
    with subprocess.Popen(
        command, cwd=_CHECKOUT, env={**os.environ, **helpdesk.environment}, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield
        finally:
            process.terminate()


def _findings(helpdesk: HelpDesk) -> dict[str, Finding]:
    router = BinlogRouter()
    router.register("public", "tickets", EventType.INSERT, "cdc_tasks.notify_ticket_insert")
    with Celery("tests", broker=helpdesk.broker.url, set_as_current=False) as app:
        app.config_from_object("cdc_tasks.config.celery")
        app.conf.broker_url = helpdesk.broker.url
        return {each.what: each for each in check_broker(app, router.routes, durability="memory")}


def _run(helpdesk: HelpDesk, command: str) -> str:
    program, *rest = shlex.split(command)
    module = ["-m", "celery"] if program == "celery" else []
    done = subprocess.run(
        [sys.executable, *module, *rest],
        cwd=_CHECKOUT,
        env={**os.environ, **helpdesk.environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=at_most(60),
    )
    return done.stdout + done.stderr


def test_another_applications_worker_at_our_queues_is_reported_and_can_be_sent_away(
    helpdesk: HelpDesk,
) -> None:
    with (
        _house_worker(helpdesk, "house,cdc_notifications"),
        Worker(helpdesk.environment, "-Q", "cdc_bulk") as first,
    ):
        found = wait_until(
            lambda: (found := _findings(helpdesk)) and any("house@" in what for what in found) and found,
            timeout=60,
            what="the stock worker to answer",
        )
        [stranger] = [each for what, each in found.items() if "house@" in what]
        assert stranger.state is State.PROBLEM
        assert "takes from cdc_notifications without having our tasks" in stranger.found
        assert found["queue cdc_notifications"].found == "no running worker takes from it"

        with Worker(helpdesk.environment, "-Q", "cdc_cache", "-n", "second@%h", mingle=True) as second:
            [line] = wait_until(
                lambda: second.events("foreign_worker_takes_our_tasks"), timeout=20, what="what it says"
            )
            assert line["hint"] == stranger.hint
            [lacking] = wait_until(lambda: second.events("queues_without_worker"), what="what nobody takes")
            assert lacking["queues"] == ["cdc_notifications"]
        assert not first.events("foreign_worker_takes_our_tasks")  # it started with --without-mingle
        _run(helpdesk, stranger.hint.splitlines()[0])
        wait_until(
            lambda: not any("house@" in what for what in _findings(helpdesk)),
            timeout=20,
            what="it to be gone",
        )


def test_messages_that_kombus_transport_has_taken_are_reported_and_come_back_in_their_order(
    helpdesk: HelpDesk,
) -> None:
    client, cache = helpdesk.broker.client, helpdesk.broker.cache
    environment = {**helpdesk.environment, "CDC_TASK_MODULES": "tests.support.tasks.killed"}
    with Worker(
        {**environment, "CELERY_CONFIG_MODULE": "tests.support.celery_settings.plain_kombu"}, "-Q", "cdc_bulk"
    ) as worker:
        for number in range(5):
            helpdesk.send("killed.note", number, queue="cdc_bulk", countdown=3600)
        wait_until(lambda: client.hlen("unacked") == 5, timeout=30, what="the worker to hold them")
        worker.kill()
    client.hset("unacked", "of the house", json.dumps([{"headers": {}, "properties": {}}, "house", "house"]))
    client.hset("unacked", "unreadable", "{")
    found = _findings(helpdesk)["broker's unacked"]
    assert found.state is State.WARNING
    assert found.found.startswith("5 messages are unacknowledged with kombu's own transport")
    with Worker(environment, "-Q", "cdc_cache", mingle=True) as other:
        wait_until(
            lambda: other.events("messages_unacked_by_kombus_transport"), timeout=20, what="what it says"
        )
        assert "5 messages requeued" in _run(helpdesk, found.hint.rpartition(": ")[2])
    assert client.hkeys("unacked") == [b"of the house", b"unreadable"]
    assert _numbers(client.lrange("cdc_bulk", 0, -1)) == [4, 3, 2, 1, 0]  # the last is taken first
    assert "broker's unacked" not in _findings(helpdesk)
    assert not unacknowledged(client)
    assert not cache.hlen("noted")


def _numbers(messages: list[bytes]) -> list[int]:
    return [int(json.loads(message)["headers"]["argsrepr"].strip("(,)[]")) for message in messages]


_HOUSE: dict[str, list[str]] = {"house@a": ["house.note"]}
_OURS: dict[str, list[str]] = {"cdc@b": ["cdc_tasks.deliver [max_retries=3]"]}


def _at(*queues: str) -> list[dict[str, Any]]:
    return [{"name": queue} for queue in queues]


def test_only_those_are_strangers_that_take_from_our_queues_and_have_said_what_they_can_do() -> None:
    active = {"house@a": _at("house", "cdc_bulk"), "cdc@b": _at("cdc_bulk"), "silent@c": _at("cdc_bulk")}
    [stranger] = foreign_workers(_HOUSE | _OURS, active, ["cdc_bulk", "cdc_cache"])
    assert stranger.who == "house@a"
    assert stranger.hint.startswith("celery -A cdc_tasks control -d house@a cancel_consumer cdc_bulk\n")
    assert queues_taken(_OURS | _HOUSE, active) == {"cdc_bulk"}
    assert queues_taken(_HOUSE, active) == set()
    assert not list(foreign_workers(_HOUSE, {"house@a": _at("house")}, ["cdc_bulk"]))


def test_another_applications_worker_that_has_what_the_routes_send_there_is_no_stranger() -> None:
    active = {"house@a": _at("house", "cdc_bulk")}
    needed = {"house": {"house.note"}, "cdc_bulk": {"house.note", "house.sync"}}
    [stranger] = foreign_workers(_HOUSE, active, ["house", "cdc_bulk"], needed)
    assert stranger.found.startswith("takes from cdc_bulk without")
    assert queues_taken(_HOUSE, active, needed) == {"house"}


def test_an_empty_redis_has_nothing_of_kombus(helpdesk: HelpDesk) -> None:
    assert unacked_by_kombu(helpdesk.broker.client, ["cdc_bulk"]) is None
