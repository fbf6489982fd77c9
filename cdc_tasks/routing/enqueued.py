"""Tasks that a transaction enqueues through the database's log: reading them from the log.

In the log such a task is JSON: `{"enqueue": {"task": "shop.send", "args": [42], …}}`. `cdc_tasks.enqueue` writes it, or
plain SQL in a trigger or a procedure. Anyone who can write to the database can write one. So only tasks that a router
accepts are sent (`BinlogRouter.accept`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple, Protocol

import orjson

from cdc_tasks.changes import ChangeTransaction, EventType
from cdc_tasks.errors import CDCError
from cdc_tasks.routing.message_groups import KeyValueError, key_of
from cdc_tasks.routing.route import Route

__all__ = [
    "CREATE_MARKS",
    "ENQUEUE",
    "MESSAGE_PREFIX",
    "OPTIONS",
    "Accepted",
    "EnqueuedArguments",
    "EnqueuedTask",
    "EnqueuedTaskError",
    "TaskNotAcceptedError",
    "check_accepted",
    "check_fields",
    "enqueued_route",
    "observers",
    "prefix_of",
]

MESSAGE_PREFIX: Final = "cdc_tasks"  # of PostgreSQL's logical messages, unless a router accepts another one
# MySQL and MariaDB have no such messages. A row of this table has the content, and is deleted at once. When a savepoint
# is rolled back, MySQL's InnoDB leaves a lock in the place of such a row, and all other marks wait for it. So on MySQL
# the table has an engine that only writes to the log. MariaDB's InnoDB leaves no lock, and MariaDB ignores the comment.
CREATE_MARKS: Final = (
    "CREATE TABLE cdc_tasks_marks (id CHAR(36) CHARACTER SET ascii PRIMARY KEY, "
    "says MEDIUMTEXT CHARACTER SET utf8mb4 NOT NULL) ENGINE = InnoDB /*!80000 ENGINE = BLACKHOLE */;"
)
ENQUEUE: Final = "enqueue"  # the name of the task's fields in a message

observers: Final[list[Callable[[dict[str, Any]], None]]] = []  # `cdc_tasks.testing` observes what is enqueued
_FIELDS: Final = frozenset({"task", "id", "args", "kwargs", "key", "options"})
_TASK_ID: Final = re.compile(r"[!-~]{1,200}")  # printable ASCII: Redis key names and logs contain a task's id
_LONGEST_NAME: Final = 250  # letters of a task's name
_MOST_SHOWN: Final = 10_000  # letters of an invalid message
_LONGEST: Final = 1e8  # seconds: three years
_MOST_HEADERS: Final = 10_000  # bytes
_LONGEST_AMQP_NAME: Final = 255  # bytes
_LARGEST_AMQP_INTEGER: Final = 2**63
# Headers of a message in Celery's second protocol, in all versions (`celery.app.amqp.AMQP.as_task_v2`), and of its
# brokers.
_HEADERS_OF_CELERY: Final = frozenset({
    "argsrepr", "chain", "chord", "compression", "errbacks", "eta", "expires", "group", "group_index", "id",
    "ignore_result", "kwargsrepr", "lang", "origin", "parent_id", "replaced_task_nesting", "retries", "root_id",
    "shadow", "stamped_headers", "stamps", "task", "timelimit", "x-death", "x-delivery-count",
})  # fmt: skip
_HIGHEST_PRIORITY: Final = 255  # as a route's


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _LONGEST


def _is_time(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _is_name(value: Any) -> bool:
    """Return whether the value is a valid name for any broker: AMQP allows 255 bytes."""
    return _is_text(value) and len(value.encode()) <= _LONGEST_AMQP_NAME


def _is_queue(value: Any) -> bool:
    return _is_name(value) and not value.startswith("amq.")  # RabbitMQ reserves these


def _are_headers(value: Any) -> bool:
    """Return whether these headers fit any broker's message and replace none of Celery's or ours.

    The name of the task is a header too: anyone who could set it would run tasks that no route accepts.
    """
    if not isinstance(value, Mapping):
        return False
    try:
        size = len(orjson.dumps(value))  # refuses integers of more than 64 bits, and half of a surrogate pair
    except TypeError:
        return False
    is_ours = any(name in _HEADERS_OF_CELERY or name.startswith("cdc") for name in value)
    return size <= _MOST_HEADERS and not is_ours and _fits_amqp(value)


def _fits_amqp(value: Any) -> bool:
    """Return whether it fits AMQP's tables: names of up to 255 bytes, and signed 64-bit integers."""
    if isinstance(value, Mapping):
        return all(
            len(name.encode()) <= _LONGEST_AMQP_NAME and _fits_amqp(each) for name, each in value.items()
        )
    if isinstance(value, list):
        return all(map(_fits_amqp, value))
    return not isinstance(value, int) or value < _LARGEST_AMQP_INTEGER


def _is_priority(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _HIGHEST_PRIORITY


_NUMBER: Final = (_is_number, "a number of seconds")
_TEXT: Final = (_is_text, "a non-empty text")
_NAME: Final = (_is_name, "a non-empty text of up to 255 bytes")
# Options of `apply_async` that a message in the log may have. Celery's other options need a connection to the broker.
OPTIONS: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "countdown": _NUMBER,
    "delivery_mode": (lambda value: value in (1, 2), "1 or 2"),
    "eta": (_is_time, "a time in ISO 8601"),
    "exchange": _NAME,
    "expires": (
        lambda value: _is_number(value) or _is_time(value),
        "a number of seconds or a time in ISO 8601",
    ),
    "headers": (_are_headers, "an object of up to 10,000 bytes, without Celery's or cdc-tasks' own names"),
    "ignore_result": (lambda value: isinstance(value, bool), "true or false"),
    "on_failure": (lambda value: value in ("continue", "hold"), '"continue" or "hold"'),
    "priority": (_is_priority, f"a number from 0 to {_HIGHEST_PRIORITY}"),
    "queue": (_is_queue, "the name of a queue, of up to 255 bytes, that does not begin with amq."),
    "routing_key": _NAME,
    "shadow": _TEXT,
    "soft_time_limit": _NUMBER,
    "time_limit": _NUMBER,
}


class EnqueuedTaskError(CDCError):
    """A message in the log does not make a valid task."""


class TaskNotAcceptedError(CDCError):
    """A transaction enqueued a task that no route accepts."""


class Accepted(NamedTuple):
    """Which tasks a transaction may enqueue: `BinlogRouter.accept`."""

    task: str  # a name, or a glob
    prefix: str = MESSAGE_PREFIX  # of the logical messages

    def takes(self, task: str, prefix: str) -> bool:
        """Return whether it is one of these tasks."""
        return prefix == self.prefix and fnmatchcase(task, self.task)


class _Transaction(Protocol):
    id_head: bytes
    position_head: bytes


@dataclass(slots=True, eq=False)
class EnqueuedTask:
    """A task that a committed transaction enqueued, at its place among the transaction's changes.

    It is in a batch among the changes, and has the part of `cdc_tasks.changes.Change` that their readers need.
    """

    kind: tuple[
        str, str, str
    ]  # its options as JSON, the task, and `enqueued`: messages of the same kind are sent alike
    stamp: tuple[bytes, bytes]  # the task's id and the position in the log
    commit: Any
    ordinal: int
    arguments: bytes = b""  # JSON, without the list's brackets
    kwargs: bytes = b""  # JSON, without the object's braces
    key: str | None = None  # of its message group
    error: CDCError | None = None  # why it is not a valid task
    said: str = ""  # the message as JSON, if it is not a valid task

    schema = ""
    before = after = None
    unavailable = ()
    is_muted = False
    event = EventType.ENQUEUED

    @classmethod
    def read(cls, fields: Any, transaction: _Transaction, ordinal: int, prefix: str) -> EnqueuedTask:
        """Return the task of a message; with an `error` if the message is invalid."""
        number = b"%d" % ordinal
        own_id, position = transaction.id_head + number, transaction.position_head + number
        task = _task_in(fields)
        try:
            found = _Fields.read(fields)
        except (EnqueuedTaskError, KeyValueError) as error:
            kind = _kind(task, {}, prefix)
            return cls(kind, (own_id, position), transaction, ordinal, error=error, said=_said(fields))
        stamp = found.id.encode() if found.id else own_id, position
        kind = _kind(task, found.options, prefix)
        return cls(kind, stamp, transaction, ordinal, found.arguments, found.kwargs, found.key)

    @property
    def table(self) -> str:
        """The task's name: logs and lists show it in place of a table."""
        return self.kind[1]

    @property
    def id(self) -> str:
        return self.stamp[0].decode()

    @property
    def position(self) -> str:
        return self.stamp[1].decode()

    @property
    def committed_at(self) -> datetime:
        found: datetime = self.commit.committed_at
        return found

    @property
    def context(self) -> dict[str, Any] | None:
        """The context of its transaction; None: it has none."""
        context = self.commit.context
        return None if context is None else dict(context.values)

    @property
    def transaction(self) -> ChangeTransaction:
        """Its place in its transaction; it is not a change, so never the last one."""
        return ChangeTransaction(self.commit.id_head[:-1].decode(), self.ordinal + 1, is_last=False)

    @property
    def row(self) -> dict[str, Any]:
        return {}

    def changed(self, column: str) -> None:  # noqa: ARG002  # it has no columns
        """Return None: there is no row."""
        return

    def logged(self) -> dict[str, Any]:
        """Return the message, if it does not make a valid task."""
        return {"message": self.said[:_MOST_SHOWN]}

    def to_json(self, columns: tuple[str, ...] | None = None) -> bytes:  # noqa: ARG002  # the same
        """Return its arguments as a JSON list."""
        return b"[%b]" % self.arguments


class _Fields(NamedTuple):
    """The fields of a message, checked."""

    id: str | None
    arguments: bytes
    kwargs: bytes
    key: str | None
    options: dict[str, Any]

    @classmethod
    def read(cls, fields: Any) -> _Fields:
        _check(isinstance(fields, dict), "The message", "an object with the field task")
        _refuse_unknown(fields, _FIELDS, "field")
        task, task_id, key = fields.get("task"), fields.get("id"), fields.get("key")
        args, kwargs = fields.get("args") or [], fields.get("kwargs") or {}
        is_name = isinstance(task, str) and task.strip() and task.isprintable() and len(task) <= _LONGEST_NAME
        _check(is_name, "task", "the name of a task")
        is_id = task_id is None or (isinstance(task_id, str) and _TASK_ID.fullmatch(task_id))
        _check(is_id, "id", "a task's id: up to 200 letters of ASCII, no space, quotation mark or backslash")
        _check(isinstance(args, list), "args", "a list")
        _check(isinstance(kwargs, dict), "kwargs", "an object")
        options = _options(fields.get("options") or {}, has_key=key is not None)
        try:
            return cls(task_id, _json(args), _json(kwargs), _key(key), options)
        except RecursionError:
            raise EnqueuedTaskError("The arguments of an enqueued task are nested too deeply.") from None


def check_fields(fields: Any) -> None:
    """Raise EnqueuedTaskError or KeyValueError unless a message with these fields makes a valid task."""
    _Fields.read(fields)


def _options(options: Any, *, has_key: bool) -> dict[str, Any]:
    _check(isinstance(options, Mapping), "options", "an object")
    _refuse_unknown(options, OPTIONS, "option")
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        is_right, wanted = OPTIONS[name]
        _check(is_right(value), name, wanted)
    _check(
        not ("countdown" in given and "eta" in given), "eta", "given together with countdown: leave one out"
    )
    _check(has_key or "on_failure" not in given, "on_failure", "for a task without a key: give it a key")
    return {"on_failure": "continue", **given} if has_key else given


def prefix_of(kind: tuple[str, str, str]) -> str:
    """Return the prefix of its logical message."""
    prefix: str = json.loads(kind[0] or "{}").get("prefix", MESSAGE_PREFIX)
    return prefix


def check_accepted(task: str, prefix: str, accepted: Sequence[Accepted]) -> None:
    """Raise TaskNotAcceptedError unless one of `accepted` takes the task."""
    if not any(each.takes(task, prefix) for each in accepted):
        raise TaskNotAcceptedError(
            f"A transaction enqueued {task}, and no route accepts it.",
            hint=f'In the file of routes, router.accept("{task}"), then python -m listener reload, and: '
            "python -m listener parked replay",
        )


def _check(is_right: Any, what: str, wanted: str) -> None:
    if not is_right:  # without the value: it may be personal
        raise EnqueuedTaskError(
            f"{what} of an enqueued task is not {wanted}."
            if what[0].islower()
            else f"{what} is not {wanted}.",
            hint="docs/enqueue.md lists what an enqueued task may have.",
        )


def _refuse_unknown(given: Mapping[str, Any], known: Iterable[str], what: str) -> None:
    unknown = [repr(name)[:100] for name in given if name not in known]
    if unknown:
        raise EnqueuedTaskError(
            f"An enqueued task has no {what} {', '.join(unknown)}.",
            hint=f"It may have {', '.join(sorted(known))}.",
        )


def _key(key: Any) -> str | None:
    """Return the key of a message group; `key` is a list of its name and the values, as `key_headers` takes them."""
    if key is None:
        return None
    _check(isinstance(key, list) and len(key) > 1, "key", "a list of a group's name and at least one value")
    return key_of(*key)


def _task_in(fields: Any) -> str:
    task = fields.get("task") if isinstance(fields, dict) else None
    return task[:_LONGEST_NAME] if isinstance(task, str) and task.isprintable() and task else "?"


def _kind(task: str, options: Mapping[str, Any], prefix: str) -> tuple[str, str, str]:
    said = {**options, "prefix": prefix} if prefix != MESSAGE_PREFIX else options
    return json.dumps(said, sort_keys=True) if said else "", task, EventType.ENQUEUED.value


def _said(fields: Any) -> str:
    try:
        return json.dumps(fields)
    except RecursionError:
        return ""


def _json(value: Any) -> bytes:
    """Return a list or an object without its brackets. In ASCII: half of a surrogate pair has no UTF-8."""
    return json.dumps(value, separators=(",", ":")).encode()[1:-1]


def enqueued_route(kind: tuple[str, str, str], accepted: Sequence[Accepted] | None = None) -> Route:
    """Return the route that sends an enqueued task of this kind. Without `accepted`, it was accepted before.

    If none of `accepted` takes the task, the route parks it.
    """
    said, task, _ = kind
    options: dict[str, Any] = json.loads(said) if said else {}
    options.pop("prefix", None)
    is_keyed, on_failure = "on_failure" in options, options.pop("on_failure", "continue")
    expires = options.pop("expires") if isinstance(options.get("expires"), int | float) else None
    named = {name: options.pop(name, None) for name in ("queue", "countdown", "priority")}
    return Route(
        schema=said,
        table=task,
        events=frozenset({EventType.ENQUEUED}),
        task=task,
        when=None,
        args=EnqueuedArguments(task, prefix_of(kind), accepted),
        columns=None,
        coalesce=False,
        batch=None,
        expires=expires,
        id="",
        is_grouped=False,
        key=_key_of_enqueued if is_keyed else None,
        on_failure=on_failure,
        options=options,
        **named,
    )


def _key_of_enqueued(change: Any) -> str | None:
    key: str | None = change.key
    return key


@dataclass(frozen=True, slots=True)
class EnqueuedArguments:
    """The arguments that an enqueued task's message has."""

    task: str
    prefix: str
    accepted: Sequence[Accepted] | None

    def __call__(self, change: Any) -> Any:
        """Return them as JSON, as in Call. Raises the task's own error, or TaskNotAcceptedError."""
        if change.error is not None:
            raise change.error
        if self.accepted is not None:
            check_accepted(self.task, self.prefix, self.accepted)
        return change.arguments, change.kwargs
