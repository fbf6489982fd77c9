"""Order by key with real workers: retries, failures, kills, and the commands for them."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery

from cdc_tasks import key_headers
from harness.waiting import at_most, wait_until
from harness.worker import Worker
from tests.support.warm_python import WARM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Broker


@pytest.fixture
def environment(broker: Broker) -> dict[str, str]:
    return {
        "CELERY_BROKER_URL": broker.url,
        "CACHE_URL": broker.cache_url,
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
        "CDC_TASK_MODULES": "tests.support.tasks.keyed",
        "CELERY_CONFIG_MODULE": "tests.support.celery_settings.short_lease",
    }


@pytest.fixture
def app(environment: dict[str, str]) -> Iterator[Celery]:
    """Send tasks as an application with our settings does."""
    broker = environment["CELERY_BROKER_URL"]
    options = {"broker_transport": "cdc_tasks.broker.redis.transport:Transport"}
    with Celery("tests", broker=broker, set_as_current=False, changes=options) as app:
        yield app


def _send(app: Celery, number: int, key: str, how: str = "well", **options: Any) -> str:
    headers = key_headers("orders", key, **options)
    return str(app.send_task("keyed.note", [number, how], queue="cdc_bulk", headers=headers).id)


def _noted(broker: Broker) -> list[str]:
    return [each.decode() for each in broker.cache.lrange("noted", 0, -1)]


def _wait_for(broker: Broker, *noted: str) -> list[str]:
    wait_until(lambda: set(noted) <= set(_noted(broker)), timeout=60, what=f"{noted} in {_noted(broker)}")
    return _noted(broker)


def _command(environment: dict[str, str], *words: str) -> Any:
    found = WARM.run(
        [sys.executable, "-m", "cdc_tasks", *words], env={**environment, "PATH": ""}, timeout=at_most(120)
    )
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout) if "--json" in words else found.stdout


@pytest.mark.versions
def test_a_task_that_is_retried_or_whose_worker_was_killed_holds_back_its_own_key_alone(
    broker: Broker, environment: dict[str, str], app: Celery
) -> None:
    with Worker(environment, "-Q", "cdc_bulk", concurrency=4) as worker:
        _send(app, 1, "retried", "retried")
        _send(app, 2, "retried")
        assert _wait_for(broker, "end 2") == ["begin 1", "begin 1", "end 1", "begin 2", "end 2"]
        _send(app, 3, "killed", "killed")
        _send(app, 4, "killed")
        _wait_for(broker, "begin 3")
        _send(app, 5, "free")
        assert "begin 4" not in _wait_for(broker, "end 5")
        os.kill(worker.process.pid, signal.SIGKILL)  # the main process alone
        pid = int(broker.cache.get("pid") or 0)
        wait_until(
            lambda: not Path(f"/proc/{pid}").exists(), what="the task's process to end with its worker"
        )
    with Worker(environment, "-Q", "cdc_bulk"):
        noted = _wait_for(broker, "end 4")
    # The kill may have come before the acknowledgement of task 5: then that runs again, meanwhile.
    of_key = [each for each in noted if each.endswith((" 3", " 4"))]
    assert of_key == ["begin 3", "begin 3", "end 3", "begin 4", "end 4"], noted


def test_a_task_that_always_fails_costs_the_others_no_hand_out(
    broker: Broker, environment: dict[str, str], app: Celery
) -> None:
    others = range(100, 160)
    with Worker(environment, "-Q", "cdc_bulk"):
        _send(app, 1, "bad", "never")
        for number in range(2, 22):
            _send(app, number, "bad")
        _wait_for(broker, "begin 1")
        for number in others:
            _send(app, number, f"good-{number % 7}")
        _wait_for(broker, *(f"end {number}" for number in others))
    begun = [line for line in _noted(broker) if line.startswith("begin ")]
    # What waits for its key is not handed out, and nobody else's task is handed out more than once.
    assert sorted({*begun} - {"begin 1"}) == [f"begin {number}" for number in others]
    assert len([line for line in begun if line != "begin 1"]) == len(others)


def test_a_failed_task_lets_its_key_go_on_or_holds_it_until_it_is_replayed_or_dropped(
    broker: Broker, environment: dict[str, str], app: Celery
) -> None:
    with Worker(environment, "-Q", "cdc_bulk"):
        _send(app, 1, "continue", "held up")
        _send(app, 2, "continue")
        assert _wait_for(broker, "end 2") == ["begin 1", "begin 2", "end 2"]
        broker.cache.delete("noted")

        first = _send(app, 3, "mail@example.com", "held up", on_failure="hold")
        second = _send(app, 4, "mail@example.com", "held up", on_failure="hold")
        _send(app, 5, "mail@example.com", on_failure="hold")
        wait_until(lambda: _held(environment), timeout=60, what="the key to be held")
        (held,) = _held(environment)
        assert held.items() >= {
            "key": "orders:mail@example.com", "task": "keyed.note", "task_id": first, "waiting": 2
        }.items()  # fmt: skip
        shown = _command(environment, "keys", "show", held["key"])
        assert f"keyed.note {first}, failed" in shown
        assert f"keyed.note {second} for cdc_bulk" in shown
        assert _noted(broker) == ["begin 3"]

        broker.cache.set("fixed", 1)
        _command(environment, "dead-letters", "replay", first)
        noted = _wait_for(broker, "end 5")
        assert noted == ["begin 3", "begin 3", "end 3", "begin 4", "end 4", "begin 5", "end 5"]
        broker.cache.delete("noted", "fixed")

        third = _send(app, 6, "dropped", "held up", on_failure="hold")
        fourth = _send(app, 7, "dropped", "held up", on_failure="hold")
        _send(app, 8, "dropped")
        wait_until(lambda: _held(environment), timeout=60, what="the key to be held")
        _command(environment, "dead-letters", "drop", third)
        _wait_for(broker, "begin 7")
        wait_until(lambda: _held(environment), timeout=60, what="the key to be held again")
        assert "goes on" in _command(environment, "keys", "skip", "orders:dropped")
        assert _wait_for(broker, "end 8") == ["begin 6", "begin 7", "begin 8", "end 8"]
        assert _held(environment) == []
        assert fourth in _command(environment, "dead-letters", "list")


def _held(environment: dict[str, str]) -> list[dict[str, Any]]:
    return [each for each in _command(environment, "keys", "list", "--json") if each["state"] == "failed"]
