"""An application's own module: the one in docs/tasks.md, unchanged."""

from __future__ import annotations

import json
import os
import re
import sys
from base64 import b64decode
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import redis

from cdc_tasks.changes import EventType
from harness.waiting import wait_until
from harness.worker import Worker
from tests.support.helpdesk import change
from tests.support.warm_python import WARM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.helpdesk import HelpDesk

_CHECKOUT = Path(__file__).resolve().parents[3]


def test_the_module_in_the_docs_adds_a_task_a_message_a_service_and_a_cached_table(
    helpdesk: HelpDesk, tmp_path: Path
) -> None:
    (tmp_path / "myapp.py").write_text(_longest_python_block(_CHECKOUT / "docs" / "tasks.md"))
    environment = {**helpdesk.environment, "CDC_TASK_MODULES": "myapp", "PYTHONPATH": str(tmp_path)}
    paper = tmp_path / "paper.txt"
    _connect(environment, "anna@example.com", "paper", secret=str(paper))
    helpdesk.database.execute(
        "CREATE TABLE countries (id int, name text); INSERT INTO countries VALUES (1, 'Peru')"
    )

    with Worker(environment):
        promotion = change(EventType.UPDATE, "users", after={"id": helpdesk.ANNA})
        helpdesk.send("myapp.promoted", promotion, queue="celery")
        helpdesk.send("cdc_tasks.refresh_master_cache", "countries", queue="cdc_cache")

        wait_until(paper.exists, what="the message")
        countries = wait_until(lambda: helpdesk.broker.cache.get("master:countries"), what="the countries")
    assert paper.read_text() == "anna@example.com: Promoted: Congratulations, Anna!\n"
    assert json.loads(countries) == [{"id": 1, "name": "Peru"}]


def test_a_coroutine_function_is_a_task_as_any_other_and_its_events_come_in_order(helpdesk: HelpDesk) -> None:
    environment = {**helpdesk.environment, "CDC_TASK_MODULES": "tests.support.tasks.probe"}
    with Worker(environment) as worker, _task_events(helpdesk) as events:
        task_id = helpdesk.send("probe.awaits", "its argument", queue="celery")
        (ran,) = wait_until(lambda: helpdesk.broker.cache.lrange("ran", 0, -1), what="the second try")
        assert {"argument": "its argument", "retries": 1}.items() <= json.loads(ran).items()
        other_id = helpdesk.send("probe.ran", "another", queue="celery")
        wait_until(lambda: helpdesk.broker.cache.llen("ran") == 2, what="a task that is no coroutine")
        assert worker.stop() == 0
        found = events()
    own = [kind for kind, uuid in found if uuid == task_id]
    begun = ["task-received", "task-started"]
    assert own == [*begun, "task-retried", *begun, "task-succeeded"]
    other = [kind for kind, uuid in found if uuid == other_id]
    assert other == [*begun, "task-succeeded"]  # the last one was published before the worker ended


@contextmanager
def _task_events(helpdesk: HelpDesk) -> Iterator[Callable[[], list[tuple[str, str]]]]:
    """Yield a function that returns the kinds and ids of all task events so far, in their order."""
    found: list[tuple[str, str]] = []
    with redis.Redis.from_url(helpdesk.broker.url) as client, client.pubsub() as subscriber:
        subscriber.psubscribe("*celeryev/task.*")
        subscriber.get_message(timeout=60)  # the answer to that

        def so_far() -> list[tuple[str, str]]:
            while message := subscriber.get_message(timeout=1):
                body = json.loads(b64decode(json.loads(message["data"])["body"]))
                found.extend((event["type"], event["uuid"]) for event in body)
            return list(found)

        yield so_far


def _longest_python_block(page: Path) -> str:
    return max(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL), key=len)


def _connect(environment: dict[str, str], *arguments: str, secret: str) -> None:
    WARM.run(
        [sys.executable, "-m", "cdc_tasks", "connect-account", *arguments],
        env={**os.environ, **environment},
        cwd=_CHECKOUT,
        input=secret,
        check=True,
    )
