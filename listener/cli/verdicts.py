"""What `explain` and `watch` show about a change and the routes: as text for people, as an object for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from celery import Celery
from rich.text import Text

from cdc_tasks.changes import Change, EventType
from cdc_tasks.environment import shown_context
from cdc_tasks.errors import CDCError
from cdc_tasks.routing.explained import Outcome, Verdict
from cdc_tasks.routing.message_groups import shown_key
from cdc_tasks.routing.route import Call, Route
from cdc_tasks.source_lines import named
from listener.publish.destination import destination

__all__ = ["Describer", "context_of", "difference", "local_time", "message_of", "names_of", "printable"]

_LONGEST: Final = 200  # characters of a value in a line
_STYLES: Final = {Outcome.FIRES: "bold green", Outcome.PARKS: "bold red"}
_WORDS: Final = {Outcome.FIRES: "fires", Outcome.PARKS: "would be parked"}


@dataclass(kw_only=True)
class Describer:
    """Describes verdicts."""

    app: Celery
    has_values: bool = True  # show row values, and arguments made from them
    has_ids: bool = True  # the change comes from the log, so its tasks have ids
    held: Mapping[str, str] = field(
        default_factory=dict
    )  # by route id: why it is held back (paused or skipped)
    _queues: dict[tuple[Any, ...], str] = field(default_factory=dict)

    def as_object(self, verdict: Verdict) -> dict[str, Any]:
        """Return it for JSON. Without values, there are no arguments, and the key is a digest."""
        route, call = verdict.route, verdict.call
        found: dict[str, Any] = {
            "id": route.id,
            "task": route.task,
            "outcome": verdict.outcome.value,
            "reason": self.reason(verdict),
            "place": verdict.place,
            "when": None if route.when is None else named(route.when),
        }
        if call is not None:
            found |= {"queue": self._queue(call), "key": self._key(call), "task_id": self._task_id(call)}
            found |= _arguments(call) if self.has_values else {}
            found["held"] = self.held.get(route.id)
        return found

    def as_lines(self, verdict: Verdict) -> Iterator[Text]:
        """Yield it as lines: the route's outcome and why, and the call."""
        route, call = verdict.route, verdict.call
        line = Text("  ").append(_WORDS.get(verdict.outcome, "not"), _STYLES.get(verdict.outcome, "dim"))
        line.append(f" {printable(route.task)}")
        if call is not None:
            line.append(" → ", "dim").append(printable(self._queue(call)), "cyan")
        if reason := self.reason(verdict):
            line.append(f": {printable(reason)}")
        if verdict.place:
            line.append(f"  {printable(verdict.place)}", "dim")
        yield line
        if call is not None:
            yield from (Text(f"    {each}") for each in self._details(call))

    def reason(self, verdict: Verdict) -> str:
        """Return why, with the condition's text and the error."""
        when, outcome = verdict.route.when, verdict.outcome
        words = [verdict.reason] if verdict.reason else []
        if when is not None and outcome in {Outcome.WHEN, Outcome.FIRES}:
            said = "is true" if outcome is Outcome.FIRES else "is false"
            words.insert(0, f"when={named(when)} {said}")
        if verdict.error is not None and self.has_values:
            words.append(_told(verdict.error))
        return ": ".join(words)

    def _details(self, call: Call) -> Iterator[str]:
        if self.has_values:
            yield printable(_call_words(call))
        if (key := self._key(call)) is not None:
            yield f"key {printable(key)}"
        if task_id := self._task_id(call):
            yield f"task id {printable(task_id)}"
        if sending := _sending(call.route):
            yield ", ".join(sending)
        if held := self.held.get(call.route.id):
            yield held

    def _key(self, call: Call) -> str | None:
        return call.key if self.has_values or call.key is None else shown_key(call.key)

    def _task_id(self, call: Call) -> str | None:
        """Return the task's id; None if the task is shared with other changes and gets its own id."""
        return call.id if self.has_ids and not call.route.is_grouped else None

    def _queue(self, call: Call) -> str:
        """Return its queue, or why the broker would not get it."""
        known = (*call.route.sent_as, call.key)
        if known not in self._queues:
            if len(self._queues) > 1_000:
                self._queues.clear()
            try:
                self._queues[known] = destination(self.app, call.route, call.key)
            except CDCError as error:
                self._queues[known] = f"no queue ({error.message})"
        return self._queues[known]


def _arguments(call: Call) -> dict[str, Any]:
    args = json.loads(b"[%b]" % call.arguments)
    if call.route.args is None:
        args = [_shown(each) for each in args]
    return {"args": args, "kwargs": json.loads(b"{%b}" % call.kwargs)}


def _shown(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a change as a task gets it, with the part of its context that may be shown."""
    shown = shown_context(message.get("context"))
    rest = {name: value for name, value in message.items() if name != "context"}
    return rest | ({"context": shown} if shown else {})


def _call_words(call: Call) -> str:
    """Return the arguments as a call in Python."""
    if call.route.args is None:
        only = "" if call.route.columns is None else f", with the columns {', '.join(call.route.columns)}"
        return f"called with the change{only}"
    given = _arguments(call)
    words = [*map(repr, given["args"]), *(f"{name}={value!r}" for name, value in given["kwargs"].items())]
    return f"called with ({_shortened(', '.join(words))})"


def _sending(route: Route) -> list[str]:
    words = ["together with equal ones, as one task"] if route.coalesce else []
    words += [f"in a batch of up to {route.batch}"] if route.batch else []
    words += [f"due after {route.countdown:g} s"] if route.countdown is not None else []
    words += [f"expires after {route.expires:g} s"] if route.expires is not None else []
    return words + ([f"priority {route.priority}"] if route.priority is not None else [])


def _told(error: Exception) -> str:
    try:
        return error.message if isinstance(error, CDCError) else str(error)
    except Exception:  # noqa: BLE001 - the text of a user's exception is a user's code
        return ""


def message_of(change: Change, *, has_values: bool) -> dict[str, Any]:
    """Return the change as a task gets it, with the part of its context that may be shown.

    Without values, it has the changed columns instead of the rows.
    """
    head: dict[str, Any] = {
        "id": change.id,
        "schema": change.schema,
        "table": change.table,
        "event": change.event.value,
        "position": change.position,
        "committed_at": change.committed_at.isoformat(timespec="microseconds"),
    }
    if has_values and (shown := shown_context(change.context)):
        head["context"] = shown
    if change.event is EventType.ENQUEUED:
        return head
    try:
        if has_values:
            return _shown(json.loads(change.to_json()))
        return head | {"columns": difference(change, has_values=False).split(", ")}
    except CDCError as error:
        return head | {"unreadable": error.message}


def context_of(change: Change, *, has_values: bool) -> str:
    """Return the transaction's context as text; empty if there is none.

    Without values, and for everything that CDC_CONTEXT_SHOWN does not name, only the names are shown.
    """
    context = change.context
    if context is None:
        return ""
    shown = shown_context(context) if has_values else {}
    told = (f"{name}={_value(shown[name])}" if name in shown else name for name in context)
    return printable(f"context: {', '.join(told)}")


def difference(change: Change, *, has_values: bool) -> str:
    """Return the columns that changed: `status: 'open' → 'paid'`; of an inserted or deleted row, all columns.

    Without values, only the names of the changed columns. Raises what reading a row raises.
    """
    before, after = change.before, change.after
    if change.event is not EventType.UPDATE or before is None or after is None:
        row = change.row
        told = [f"{name}={_value(value)}" for name, value in row.items()] if has_values else list(row)
        return printable(", ".join(told))
    changed = [name for name, value in after.items() if name not in before or before[name] != value]
    if not has_values:
        return printable(", ".join(changed))
    told = [
        f"{name}: {_value(before[name])} → {_value(after[name])}"
        if name in before
        else f"{name}={_value(after[name])}"
        for name in changed
    ]
    return printable(", ".join(told)) or "nothing changed"


def _value(value: Any) -> str:
    return "NULL" if value is None else _shortened(repr(value))


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def printable(text: str) -> str:
    """Return the text with control characters escaped, because a terminal would act on them."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def local_time(time: datetime) -> str:
    """Return it in local time, to the millisecond."""
    return f"{time.astimezone():%Y-%m-%d %H:%M:%S.%f}"[:-3]


def names_of(tables: Sequence[tuple[str, str]], most: int = 5) -> str:
    """Return the first ones as `schema.table`, and how many more there are."""
    shown = ", ".join(f"{schema}.{name}" for schema, name in tables[:most])
    return f"{shown} and {len(tables) - most} more" if len(tables) > most else shown
