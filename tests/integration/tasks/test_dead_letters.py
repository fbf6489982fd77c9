"""What a task leaves behind when it gives up, and what a person does with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from celery import Celery
from typer.testing import CliRunner

from cdc_tasks import install
from cdc_tasks.cli.commands import cli
from cdc_tasks.dead_letters import store as dead_letters
from cdc_tasks.routing.contexts import CONTEXT_HEADER
from harness.embedded_servers import ValkeyServer
from harness.waiting import wait_until
from harness.worker import Worker
from tests.support.warm_python import WARM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.helpdesk import HelpDesk

_CHECKOUT = Path(__file__).resolve().parents[3]


@pytest.fixture
def environment(helpdesk: HelpDesk) -> dict[str, str]:
    return {**helpdesk.environment, "CDC_TASK_MODULES": "tests.support.tasks.faulty"}


@pytest.fixture
def worker(environment: dict[str, str]) -> Iterator[Worker]:
    with Worker(environment) as running:
        yield running


@pytest.mark.versions
def test_whatever_ends_a_task_its_message_is_kept_with_the_error_and_the_earlier_tries(
    helpdesk: HelpDesk, environment: dict[str, str], worker: Worker
) -> None:
    sent = {
        helpdesk.send("faulty.counts", "n", queue="cdc_bulk"): ("faulty.counts", "ValueError", 1),
        helpdesk.send("faulty.fails", queue="celery"): (
            "faulty.fails",
            "TypeError",
            1,
        ),  # an argument is missing
        helpdesk.send("faulty.retries_out", queue="celery"): ("faulty.retries_out", "UnavailableError", 3),
        helpdesk.send("faulty.kills", queue="celery"): ("faulty.kills", "WorkerLostError", 3),
        helpdesk.send("faulty.hangs", queue="celery"): ("faulty.hangs", "TimeLimitExceeded", 1),
        helpdesk.send("faulty.unknown", {"a": "a row"}, queue="celery"): (
            "faulty.unknown",
            "UnknownTaskError",
            1,
        ),
    }
    wait_until(lambda: _number(helpdesk) == len(sent), timeout=30, what="a dead letter each")

    letters = {each["id"]: each for each in json.loads(_run(environment, "list", "--json"))}
    found = {
        letter_id: (each["task"], each["error"].partition(":")[0], len(each["attempts"]) + 1)
        for letter_id, each in letters.items()
    }
    assert found == sent
    assert int(helpdesk.broker.cache.get("killed") or 0) == 3
    by_task = {each["task"]: each for each in letters.values()}
    assert (by_task["faulty.counts"]["args"], by_task["faulty.counts"]["queue"]) == (["n"], "cdc_bulk")
    assert by_task["faulty.unknown"]["args"] == [{"a": "a row"}]
    assert "a row" not in worker.log
    assert "ValueError" in by_task["faulty.counts"]["traceback"]
    assert [each["error"] for each in by_task["faulty.retries_out"]["attempts"]] == [
        "UnavailableError: the service is away"
    ] * 2
    assert "the-secret-part" not in json.dumps(letters)
    lines = worker.events("task_gave_up")
    assert {(line["dead_letter"], line["level"]) for line in lines} == {(each, "error") for each in sent}


def test_a_replayed_letter_keeps_its_id_and_is_gone_when_its_task_is_done(
    helpdesk: HelpDesk, environment: dict[str, str], worker: Worker
) -> None:
    ids = [helpdesk.send("faulty.counts", "n", queue="cdc_bulk") for _ in range(3)]
    wait_until(lambda: _number(helpdesk) == 3, what="the letters")

    _run(environment, "replay", ids[0])  # without the hint it comes back
    wait_until(lambda: len(_letter(environment, ids[0])["attempts"]) == 1, what="the letter to come back")

    helpdesk.broker.cache.set("hint", 1)
    assert _run(environment, "replay", "--task", "faulty.*").count("sent to faulty.counts") == 3
    wait_until(lambda: helpdesk.broker.cache.get("n") == b"3", what="the tasks to be done")
    assert _number(helpdesk) == 0
    assert {line["task_id"] for line in worker.events("task_gave_up")} == set(ids)


def test_letters_are_chosen_by_id_by_task_and_by_time(
    helpdesk: HelpDesk, environment: dict[str, str], worker: Worker
) -> None:
    first = helpdesk.send("faulty.counts", "n", queue="cdc_bulk")
    wait_until(lambda: _number(helpdesk) == 1, what="the first letter")
    moment = _letter(environment, first)["failed_at"]
    second = helpdesk.send("faulty.fails", queue="celery")
    wait_until(lambda: _number(helpdesk) == 2, what="the second letter")

    assert first in _run(environment, "list", "--until", "2999-01-01")
    assert _run(environment, "list", "--task", "faulty.f*", "--json").count('"id"') == 1
    assert _run(environment, "list", "--since", "2999-01-01", "--json") == "[]\n"
    assert moment[:19].replace("T", " ") in _run(environment, "list").replace("T", " ")
    assert _run(environment, "drop", status=2) == ""  # rather a question than everything
    assert _run(environment, "show", "nobody", status=1) == ""
    assert _run(environment, "drop", first) == f"{first}: dropped\n"
    assert json.loads(_run(environment, "list", "--json"))[0]["id"] == second
    _run(environment, "drop", "--all")
    assert _number(helpdesk) == 0


def test_a_task_that_cannot_leave_a_letter_now_comes_again_and_leaves_it_later(
    helpdesk: HelpDesk, environment: dict[str, str]
) -> None:
    with ValkeyServer() as server, Worker({**environment, "CACHE_URL": server.url_of(1)}) as worker:
        server.stop()
        helpdesk.send("faulty.fails", {}, queue="celery")
        wait_until(lambda: "CacheAway" in worker.log, timeout=20, what="the task to wait")
        server.start()
        found = wait_until(lambda: worker.events("task_gave_up"), timeout=30, what="the letter")
        assert found[0]["error"] == "KeyError"


def test_changes_that_no_route_could_take_are_told_of_in_the_same_place(
    helpdesk: HelpDesk, environment: dict[str, str]
) -> None:
    helpdesk.broker.client.hset("cdc:shop:parked", "an-id", "{}")
    result = _command(environment, "list")
    assert (
        "1 parked change, whose routes failed: CDC_NAME=shop python -m listener parked list" in result.stderr
    )


def _number(helpdesk: HelpDesk) -> int:
    return int(helpdesk.broker.cache.hlen("cdc:dead-letters"))


def _letter(environment: dict[str, str], letter_id: str) -> dict[str, Any]:
    found = [each for each in json.loads(_run(environment, "list", "--json")) if each["id"] == letter_id]
    return found[0] if found else {"attempts": []}


def _run(environment: dict[str, str], *arguments: str, status: int = 0) -> str:
    result = _command(environment, *arguments)
    assert result.returncode == status, result.stderr
    return result.stdout


def _command(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return WARM.run(
        [sys.executable, "-m", "cdc_tasks", "dead-letters", *arguments],
        env={**os.environ, **environment},
        cwd=_CHECKOUT,
    )


def test_the_context_is_kept_whole_and_shown_as_far_as_a_setting_says(
    in_process: HelpDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = install(Celery("shop", broker=in_process.broker.url, set_as_current=False))
    noted: list[dict[str, Any]] = []

    @app.task(name="shop.fails")
    def fails() -> None:
        noted.append(structlog.contextvars.get_contextvars())
        raise ValueError("no")

    def run(task_id: str) -> None:
        context = {"user_id": 7, "name": "Ann", "request_id": "r"}
        fails.push_request(id=task_id, headers={CONTEXT_HEADER: context}, called_directly=False)
        with pytest.raises(ValueError, match="no"):
            fails()
        fails.pop_request()

    run("hidden")
    assert "Ann" not in _shown("show", "hidden")
    assert json.loads(_shown("show", "hidden"))["context"] == {}
    assert "context" not in _shown("list")
    monkeypatch.setenv("CDC_CONTEXT_SHOWN", "user_id, request_id, other")
    run("shown")
    assert noted == [{}, {"user_id": 7, "request_id": "r"}]
    assert "user_id=7 request_id=r" in _shown("list")
    shown = {each["id"]: each["context"] for each in json.loads(_shown("list", "--json"))}
    assert shown["hidden"] == shown["shown"] == {"user_id": 7, "request_id": "r"}
    assert dead_letters.get("hidden").context["name"] == "Ann"  # a replay has it
    assert structlog.contextvars.get_contextvars() == {}


def _shown(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["dead-letters", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout
