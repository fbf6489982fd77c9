"""Holds what a broker's queues have against what the source committed; shares no code with the listener.

Every message is decoded as a worker would, every committed change and every enqueued task is looked for. A gap, a
repeat, a wrong value, or an order other than that of the commits is a fault, and so is what was rolled back. Which
messages there should be is said here a second time, in other words than the routes: see `EXPECTED`.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final

from tests.acceptance.ledger import Committed

__all__ = ["EXPECTED", "Message", "faults", "read_arguments", "read_message", "read_queue"]

Position = tuple[int, int]

_POSITION: Final = re.compile(r"([0-9A-F]+)/([0-9A-F]+):(\d+)")
_EVERYTHING: Final = "cdc_bulk"  # the queue of all changes, and of the coalesced tasks
_COALESCED: Final = "chaos.owner"
_ENQUEUED: Final = "chaos.enqueued"
_LONG: Final = 2_000  # bytes; what is longer is stored out of line
_IN_FULL: Final = {"accounts"}  # tables whose old rows are there in full
_MEANING: Final[Mapping[str, Callable[[Any], Any]]] = {  # of values that are written in more than one way
    "amount": lambda value: None if value is None else Decimal(value),
    "touched": datetime.fromisoformat,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One task as a worker would receive it."""

    id: str
    tag: str  # kombu's delivery tag
    task: str
    arguments: Sequence[Any]
    position: Position  # of the change that names it


def read_message(raw: bytes) -> Message:
    """Decode one entry of a queue in Redis (kombu's envelope, Celery's message protocol 2)."""
    envelope = json.loads(raw)
    headers, properties = envelope["headers"], envelope["properties"]
    return Message(
        id=headers["id"],
        tag=properties["delivery_tag"],
        task=headers["task"],
        arguments=read_arguments(envelope),
        position=_position(headers["argsrepr"]),
    )


def read_arguments(envelope: Mapping[str, Any]) -> list[Any]:
    """Return the task's arguments, of a message of any source."""
    is_encoded = envelope["properties"]["body_encoding"] == "base64"
    arguments, _keywords, _embedded = json.loads(
        b64decode(envelope["body"]) if is_encoded else envelope["body"]
    )
    return list(arguments)


def read_queue(client: Any, queue: str) -> list[Message]:
    """Return a queue's messages in the order in which workers would get them: kombu pushes left, and pops right."""
    return [read_message(raw) for raw in reversed(client.lrange(queue, 0, -1))]


def _position(text: str) -> Position:
    high, low, ordinal = _POSITION.search(text).groups()
    return int(high, 16) << 32 | int(low, 16), int(ordinal)


# --- What should be there ---------------------------------------------------------------------------------


def _every_change(messages: Sequence[Message], committed: Sequence[Committed]) -> Iterator[str]:
    changes = [_said(message) for message in messages if message.task != _COALESCED]
    yield from _same(changes, committed, columns=None)
    yield from _coalesced(messages)


def _said(message: Message) -> Mapping[str, Any]:
    """Return the change that a task got; an enqueued task is one of a table that has none else."""
    if message.task != _ENQUEUED:
        return message.arguments[0]
    commit, number = message.position
    return {
        "position": f"{commit >> 32:X}/{commit & 0xFFFFFFFF:X}:{number}",
        "schema": "public", "table": "tasks", "event": "enqueued", "before": None, "unavailable": [],
        "after": {"id": message.id, "args": message.arguments},
    }  # fmt: skip


def _coalesced(messages: Sequence[Message]) -> Iterator[str]:
    """One task may stand for many changes of an owner's accounts: but none of them may come after the last one."""
    waiting: dict[int, str] = {}  # owner: where the change stands that no task followed yet
    for message in messages:
        if message.task == _ENQUEUED:
            continue
        (argument,) = message.arguments
        if message.task == _COALESCED:
            waiting.pop(argument, None)
        elif message.task != f"chaos.{argument['table']}":
            yield f"{message.id}: a change of {argument['table']} went to {message.task}"
        elif argument["table"] == "accounts" and argument["event"] != "truncate":
            waiting[(argument["after"] or argument["before"])["owner"]] = argument["position"]
    for owner, position in waiting.items():
        yield f"owner {owner} changed at {position}, and no task about it came afterwards"


def _opened_or_closed(messages: Sequence[Message], committed: Sequence[Committed]) -> Iterator[str]:
    wanted = [
        change
        for change in committed
        if change.table == "accounts"
        and change.event == "update"
        and change.before["open"] != change.after["open"]
    ]
    yield from _same(
        [message.arguments[0] for message in messages], wanted, columns=("id", "open", "version")
    )


def _new_events(messages: Sequence[Message], committed: Sequence[Committed]) -> Iterator[str]:
    wanted = [change for change in committed if (change.table, change.event) == ("events", "insert")]
    for message in messages:
        if not 1 <= len(message.arguments[0]) <= 50:
            yield f"{message.id}: a batch of {len(message.arguments[0])}, not of 1 to 50"
    yield from _same(
        [change for message in messages for change in message.arguments[0]], wanted, columns=None
    )


Rule = Callable[[Sequence[Message], Sequence[Committed]], Iterator[str]]


EXPECTED: Final[Mapping[str, Rule]] = {
    "cdc_bulk": _every_change,
    "cdc_notifications": _opened_or_closed,
    "celery": _new_events,
}


def faults(
    queues: Mapping[str, Sequence[Message]], committed: Sequence[Committed], *, repeats: bool = False
) -> list[str]:
    """Return what is wrong, in words; nothing if each change is there once, in commit order, and says the truth.

    With `repeats` a task may come again with the id it had, as brokers other than Redis allow.
    """
    found = list(_twice("delivery tag", (each.tag for messages in queues.values() for each in messages)))
    if repeats:
        queues = {queue: _firsts(messages) for queue, messages in queues.items()}
    committed = _numbered_as_sent(committed, queues[_EVERYTHING])
    found += _twice("task id", (each.id for messages in queues.values() for each in messages))
    for queue, messages in queues.items():
        found += [f"{queue}: {fault}" for fault in EXPECTED[queue](messages, committed)]
    return found


def _numbered_as_sent(committed: Sequence[Committed], sent: Sequence[Message]) -> list[Committed]:
    """Give the changes of a transaction the numbers that it has in the queue: a plugin may count what nobody watches.

    The n-th change of a transaction has to be the n-th that was sent of it, whatever its number.
    """
    numbers: dict[int, list[int]] = {}
    for commit, number in sorted({each.position for each in sent if each.task != _COALESCED}):
        numbers.setdefault(commit, []).append(number)
    numbered = []
    for change in committed:
        commit, place = change.position
        known = numbers.setdefault(commit, [])
        if place == len(known):  # never sent: a number of its own, that nothing has
            known.append(max(known, default=-1) + 1)
        numbered.append(replace(change, position=(commit, known[place])))
    return numbered


def _firsts(messages: Sequence[Message]) -> list[Message]:
    firsts: dict[str, Message] = {}
    for message in messages:
        firsts.setdefault(message.id, message)
    return list(firsts.values())


def _twice(what: str, values: Iterable[str]) -> Iterator[str]:
    for value, count in Counter(values).items():
        if count > 1:
            yield f"{what} {value} is there {count} times"


def _same(
    changes: Sequence[Mapping[str, Any]], wanted: Sequence[Committed], *, columns: tuple[str, ...] | None
) -> Iterator[str]:
    """Tell how the changes that were sent differ from those that were committed."""
    places = [_position(change["position"]) for change in changes]
    truth = {change.position: change for change in wanted}
    for place, count in Counter(places).items():
        if count > 1:
            yield f"repeat: {place} is there {count} times"
        if place not in truth:
            yield f"invented: {place} was never committed, or is nothing for this queue"
    here = set(places)
    for place, change in truth.items():
        if place not in here:
            yield f"gap: {place} is missing, {change.event} of {change.table}"
    for earlier, later in pairwise(places):
        if later < earlier:
            yield f"order: {later} comes after {earlier}"
    for place, sent in zip(places, changes, strict=True):
        if place in truth:
            yield from _differences(sent, truth[place], columns)


# --- What a change should say -----------------------------------------------------------------------------


def _differences(
    sent: Mapping[str, Any], committed: Committed, columns: tuple[str, ...] | None
) -> Iterator[str]:
    where = f"content at {sent['position']}"
    if (sent["schema"], sent["table"], sent["event"]) != ("public", committed.table, committed.event):
        yield f"{where}: {sent['event']} of {sent['table']}, not {committed.event} of {committed.table}"
        return
    unsent = {"before": _not_in_before(committed), "after": _not_in_after(committed)}
    for name, truth in (("before", committed.before), ("after", committed.after)):
        expected = _only(truth, columns, unsent[name])
        if _understood(sent[name]) != _understood(expected):
            yield f"{where}: {name} is {sent[name]}, not {expected}"
    missing = set().union(*filter(None, unsent.values()))
    if set(sent["unavailable"]) != (missing if columns is None else missing.intersection(columns)):
        yield f"{where}: unavailable is {sent['unavailable']}, not {sorted(missing)}"


def _not_in_before(committed: Committed) -> set[str] | None:
    """Return the columns of the old row that the table's replica identity leaves out; None: there is no old row."""
    before, after = committed.before, committed.after
    if before is None or committed.table in _IN_FULL:
        return set()
    if after is not None and before["id"] == after["id"]:
        return None
    return set(before) - {"id"}


def _not_in_after(committed: Committed) -> set[str]:
    """Return the columns of the new row that are not sent: long and unchanged (TOAST)."""
    before, after = committed.before, committed.after
    if before is None or after is None or committed.table in _IN_FULL:
        return set()
    return {"body"} if before["body"] == after["body"] and len(after["body"] or "") > _LONG else set()


def _only(
    row: Mapping[str, Any] | None, columns: tuple[str, ...] | None, without: set[str] | None
) -> Mapping[str, Any] | None:
    if row is None or without is None:
        return None
    return {name: row[name] for name in row if name not in without and (columns is None or name in columns)}


def _understood(row: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return None if row is None else {name: _MEANING.get(name, lambda value: value)(row[name]) for name in row}
