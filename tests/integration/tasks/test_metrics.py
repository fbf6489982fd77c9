"""The numbers of dead letters, parked and waiting messages, as Prometheus reads them from Flower."""

from __future__ import annotations

import re
import urllib.request
from contextlib import ExitStack
from typing import TYPE_CHECKING

import redis
from typer.testing import CliRunner

from cdc_tasks.cli.commands import cli
from cdc_tasks.dead_letters import store as dead_letters
from cdc_tasks.worker import retry_counts
from demo.programs import Flower
from harness.waiting import wait_until
from harness.worker import Worker

if TYPE_CHECKING:
    import pytest

    from tests.support.helpdesk import HelpDesk


def test_flower_tells_prometheus_of_dead_letters_by_task_and_of_parked_changes(
    in_process: HelpDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This needs neither a database nor a password."""
    in_process.broker.client.hset("cdc:shop:parked", mapping={"one": "{}", "two": "{}"})
    monkeypatch.setenv("FLOWER_BASIC_AUTH", "admin:flower-password")
    environment = {**in_process.environment, "CDC_TASK_MODULES": "tests.support.tasks.faulty"}
    with ExitStack() as stack:
        stack.enter_context(Worker(environment))
        with monkeypatch.context() as without_database:
            without_database.delenv("DATABASE_URL")
            flower = stack.enter_context(Flower())
        assert _numbers(flower) == {"parked_changes shop": 2, "redis_up": 1}

        for _ in range(3):
            in_process.send("faulty.fails", {}, queue="celery")
        first = in_process.send("faulty.counts", "n", queue="cdc_bulk")
        wait_until(lambda: _numbers(flower).get("dead_letters faulty.fails") == 3, what="the letters")
        wait_until(lambda: _numbers(flower).get("dead_letters faulty.counts") == 1, what="one more")

        in_process.broker.cache.set("hint", 1)
        assert _run("dead-letters", "replay", first) == 0
        assert _run("dead-letters", "replay", "--task", "faulty.fails") == 0  # they fail again
        wait_until(
            lambda: (
                _numbers(flower) == {"dead_letters faulty.fails": 3, "parked_changes shop": 2, "redis_up": 1}
            ),
            what="one letter less",
        )
        in_process.send("faulty.retries_out", queue="celery")
        wait_until(
            lambda: _totals(in_process).get("retried faulty.retries_out") == 2, what="two retries", timeout=30
        )
        wait_until(
            lambda: _totals(in_process).get("given_up faulty.retries_out") == 1, what="its end", timeout=30
        )
        assert _totals(in_process)["given_up faulty.counts"] == 1


def test_retries_that_redis_does_not_take_are_counted_later(
    in_process: HelpDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = retry_counts._RetryCounts()
    client = retry_counts._client
    monkeypatch.setattr(retry_counts, "_client", lambda: redis.Redis(port=1))
    for _ in range(3):
        counts.add("a.task")
    assert _totals(in_process) == {}
    monkeypatch.setattr(retry_counts, "_client", client)
    counts._due_at, counts._client = 0.0, None
    counts.add("a.task")
    counts.add("another task")
    assert _totals(in_process) == {"retried a.task": 4, "retried another task": 1}


def _totals(in_process: HelpDesk) -> dict[str, int]:
    found = in_process.broker.cache.hgetall("cdc:totals")
    assert isinstance(found, dict)
    return {name.decode(): int(number) for name, number in found.items()}


def test_a_letter_that_is_kept_twice_counts_once(in_process: HelpDesk) -> None:
    letter = dead_letters.DeadLetter(
        id="an-id",
        task="a.task",
        args=[],
        kwargs={},
        queue=None,
        error="",
        traceback="",
        failed_at="",
        worker=None,
    )
    for _ in range(2):
        dead_letters.keep(letter)
    assert dead_letters.count_by_task() == {"a.task": 1}
    assert dead_letters.forget(letter)
    assert not dead_letters.forget(letter)
    assert dead_letters.count_by_task() == {}


def test_a_redis_that_is_away_is_a_number_too(in_process: HelpDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_URL", "redis://127.0.0.1:1/0")
    with Flower() as flower:
        assert _numbers(flower) == {"redis_up": 0}


def _numbers(flower: Flower) -> dict[str, float]:
    with urllib.request.urlopen(f"{flower.url}/metrics", timeout=20) as answer:
        page = answer.read().decode()
    lines = re.findall(r'^cdc_(\w+)(?:\{\w+="(.*)"\})? (\S+)$', page, re.MULTILINE)
    return {f"{name} {label}".strip(): float(number) for name, label, number in lines}


def _run(*arguments: str) -> int:
    return CliRunner().invoke(cli, arguments).exit_code
