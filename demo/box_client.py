"""A client that does the same as the SQL box's page, without a browser: the scenario checks the box with it."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Mapping
from typing import Any, Final

from cdc_tasks.errors import CDCError
from cdc_tasks.words import counted

__all__ = ["BoxError", "described_run", "run"]

_PATIENCE: Final = 60.0  # seconds
_ASK_EVERY: Final = 0.1  # seconds

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class BoxError(CDCError):
    """The SQL box did not run a statement, or does not show its effects."""


def run(url: str, sql: str) -> int:
    """Run a statement; return the number of the run. Raise BoxError."""
    token = re.search(r'data-token="([^"]+)"', _ask(url).decode())
    if token is None:
        raise BoxError("The page has no token.")
    answer = json.loads(_ask(f"{url}/run", {"X-Token": token[1]}, json.dumps({"sql": sql}).encode()))
    if answer["is_error"]:
        raise BoxError(answer["words"])
    number: int = answer["run"]
    return number


def described_run(url: str, number: int) -> str:
    """Return the page's view of a run as text, once it has the change, its task and its message.

    Raise BoxError if one of them does not come: a message may arrive before the events of its task.
    """
    deadline = time.monotonic() + _PATIENCE
    while missing := _missing(shown := _effects(url, number)):
        if time.monotonic() > deadline:
            raise BoxError(f"The page shows no {missing} of run {number}.")
        time.sleep(_ASK_EVERY)
    changes, tasks = counted(len(shown["changes"]), "change"), counted(len(shown["tasks"]), "task")
    messages, first = counted(len(shown["messages"]), "message"), shown["messages"][0]["after"] * 1000
    return f"The page shows {changes}, {tasks} and {messages}, the first {first:.0f} ms after the click."


def _effects(url: str, number: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_ask(f"{url}/effects?run={number}"))
    return found


def _missing(shown: Mapping[str, Any]) -> str | None:
    return next((kind for kind in ("changes", "tasks", "messages") if not shown[kind]), None)


def _ask(url: str, headers: dict[str, str] | None = None, body: bytes | None = None) -> bytes:
    request = urllib.request.Request(url, data=body, headers=headers or {})  # noqa: S310 - our own
    with _OPENER.open(request, timeout=30) as answer:
        found: bytes = answer.read()
    return found
