"""The effects of a person's SQL: changes in the log, tasks, messages and keys of the cache."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cdc_tasks.errors import CDCError
from cdc_tasks.routing.explained import Outcome, explain
from demo.observer import CacheChanged, TaskEnded, TaskReceived
from listener.core.history import Selection
from listener.daemon.application import router_for
from listener.daemon.settings import ListenerSettings, load
from listener.daemon.wiring import journal_reader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cdc_tasks.routing.router import BinlogRouter
    from demo.observer import Message, Observation
    from listener.control.journal.file import JournalledChange
    from listener.control.journal.reader import JournalReader

__all__ = ["Effects"]

_KEPT: Final = 2_000  # observations
_MOST: Final = 50  # of a kind, that are shown
_LONGEST: Final = 120  # characters of a value


@dataclass(frozen=True, slots=True)
class _Run:
    began: float  # time.monotonic()
    first: int  # number in the journal of the first change that may be its effect


class Effects:
    """Keeps the observations, and returns the effects of each run: all observations until the next run."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, Observation]] = deque(maxlen=_KEPT)
        self._lock = threading.Lock()
        self._runs: list[_Run] = []
        self._parts: tuple[JournalReader, BinlogRouter] | None = None

    def see(self, observation: Observation) -> None:
        with self._lock:
            self._seen.append((time.monotonic(), observation))

    def begin(self) -> int:
        """Begin a run; return its number."""
        journal, _ = self._opened()
        with self._lock:
            self._runs.append(_Run(time.monotonic(), journal.summary().end))
            return len(self._runs)

    def of(self, run: int) -> dict[str, Any]:
        """Return the effects of a run so far, for JSON; raise IndexError if there is no such run."""
        with self._lock:
            if not 0 < run <= len(self._runs):
                raise IndexError(run)
            this, next_run = self._runs[run - 1], self._runs[run] if run < len(self._runs) else None
            seen = [
                (at, each)
                for at, each in self._seen
                if at >= this.began and (next_run is None or at < next_run.began)
            ]
        return {
            "seconds": time.monotonic() - this.began,
            "changes": list(self._changes(this, next_run)),
            "tasks": _tasks(seen, this.began)[:_MOST],
            "messages": [_message(each, at - this.began) for at, each in seen if _is_message(each)][:_MOST],
            "cache": [
                {"key": each.key, "after": at - this.began}
                for at, each in seen
                if isinstance(each, CacheChanged)
            ][:_MOST],
        }

    def _opened(self) -> tuple[JournalReader, BinlogRouter]:
        """Return the listener's journal and its routes. Raises CDCError."""
        if self._parts is None:
            settings = load(ListenerSettings)
            self._parts = journal_reader(settings), router_for(settings)
        return self._parts

    def _changes(self, this: _Run, next_run: _Run | None) -> Iterator[dict[str, Any]]:
        journal, router = self._opened()
        end = None if next_run is None else next_run.first
        number = 0
        for _, change in journal.changes(Selection(), start=this.first, end=end):
            if change is not None:
                yield _shown_change(change, router)
                if (number := number + 1) == _MOST:
                    return


def _is_message(observation: Observation) -> bool:
    return not isinstance(observation, CacheChanged | TaskReceived | TaskEnded)


def _shown_change(change: JournalledChange, router: BinlogRouter) -> dict[str, Any]:
    try:
        fates = [_fate(each) for each in explain(router, change) if each.outcome is not Outcome.TABLE]
    except CDCError as error:
        fates = [{"task": "", "fires": False, "why": error.message}]
    return {
        "event": change.event.value,
        "table": f"{change.schema}.{change.table}",
        "position": change.position,
        "columns": [] if change.is_unreadable else list(_difference(change)),
        "fates": fates,
    }


def _fate(verdict: Any) -> dict[str, Any]:
    why = ", ".join(filter(None, [verdict.reason, verdict.place]))
    return {"task": verdict.route.task, "fires": verdict.outcome is Outcome.FIRES, "why": why}


def _difference(change: JournalledChange) -> Iterator[tuple[str, str | None, str | None]]:
    """Yield each column with its value before and after; None: it had none. For an update, only the differences.

    NULLs of an inserted or deleted row are left out.
    """
    before, after = change.before or {}, change.after or {}
    for name in {**before, **after}:
        old, new = before.get(name), after.get(name)
        is_whole = change.before is None or change.after is None
        if (is_whole and (old, new) != (None, None)) or (not is_whole and name in before and old != new):
            yield name, _text(old) if name in before else None, _text(new) if name in after else None


def _text(value: Any) -> str:
    text = "NULL" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _tasks(seen: list[tuple[float, Observation]], began: float) -> list[dict[str, Any]]:
    """Return each task with its last state, in the order in which the workers received them."""
    found: dict[str, dict[str, Any]] = {}
    for at, each in seen:
        if isinstance(each, TaskReceived):
            found[each.id] = {
                "id": each.id,
                "name": each.name,
                "about": each.arguments.strip("<>") if each.arguments.startswith("<") else "",
                "state": "RECEIVED",
                "outcome": "",
                "after": at - began,
            }
        elif isinstance(each, TaskEnded) and each.id in found:
            found[each.id] |= {"state": each.state, "outcome": each.outcome[:_LONGEST], "after": at - began}
    return list(found.values())


def _message(message: Message | Any, after: float) -> dict[str, Any]:
    return {"service": message.service, "to": message.to, "text": message.text, "after": after}
