"""An application's own module: the one in docs/tasks.md, unchanged."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cdc_tasks.changes import EventType
from harness.waiting import wait_until
from harness.worker import Worker
from tests.support.helpdesk import change

if TYPE_CHECKING:
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


def _longest_python_block(page: Path) -> str:
    return max(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL), key=len)


def _connect(environment: dict[str, str], *arguments: str, secret: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "cdc_tasks", "connect-account", *arguments],
        env={**os.environ, **environment},
        cwd=_CHECKOUT,
        input=secret,
        check=True,
        capture_output=True,
        text=True,
    )
