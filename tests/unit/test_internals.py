"""Private names of other people's packages that we use: an upgrade that changes one of them fails here.

A row says what the name is today: a function's signature, an attribute's type, or "assigned" if a method of the class
sets it. Before you add a row, or correct one after an upgrade, read the package's source: does it still do what we rely
on?
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from unittest.mock import MagicMock

import pytest
from pymysql.connections import Connection

from listener.mysql.client import replication

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT: Final = Path(__file__).parents[2]
_OURS: Final = ("listener", "cdc_tasks")
# Of every NamedTuple, and what Python itself adds to classes.
_PUBLIC: Final = frozenset({"_asdict", "_fields", "_make", "_replace", "_abc_impl", "_is_protocol"}) | {
    "_meta"  # of Django's models: a documented interface
}
_PRIVATE: Final = re.compile(r"_[a-zA-Z][a-zA-Z0-9_]*(?<!__)")


class Internal(NamedTuple):
    """A private name of a package."""

    module: str
    name: str  # with its class
    expected: str
    why: str
    older: tuple[str, ...] = ()  # what it is in older versions that are supported


INTERNALS: Final = (
    Internal(
        "celery",
        "Celery._tasks",
        "assigned",
        "An app's tasks, without making those that are still to be made.",
    ),
    Internal(
        "amqp.channel",
        "Channel._basic_publish",
        "(self, msg, exchange='', routing_key='', mandatory=False, immediate=False, "
        "timeout=None, confirm_timeout=None, argsig='Bssbb')",
        "Publishes; the wait for the confirmation is ours.",
    ),
    Internal(
        "amqp.connection",
        "Connection._on_blocked",
        "(self)",
        "A worker that publishes waits while RabbitMQ has an alarm.",
    ),
    Internal("amqp.connection", "Connection._on_unblocked", "(self)", "The same."),
    Internal(
        "celery.events.dispatcher",
        "EventDispatcher._group_buffer",
        "assigned",
        "Events that a broken connection has not published go to the next one.",
    ),
    Internal("celery.worker.request", "Request._args", "member_descriptor", "Shown without rows."),
    Internal(
        "celery.worker.request",
        "Request._context",
        "cached_property",
        "Its headers count the workers that the task has killed.",
    ),
    Internal("celery.worker.request", "Request._kwargs", "member_descriptor", "Shown without rows."),
    Internal(
        "celery.worker.request",
        "Request._retry_worker_lost",
        "(self, exc, exc_info)",
        "A task that kills its worker is not run forever.",
        older=("missing",),
    ),
    Internal(
        "kombu.transport.redis",
        "Channel._expires",
        "assigned",
        "A message with a key renews its queue's expiry, as any other does.",
        older=("missing",),
    ),
    Internal(
        "kombu.transport.redis",
        "Channel._async_pool",
        "NoneType",
        "After an alarm its connections are closed.",
    ),
    Internal(
        "kombu.transport.redis",
        "Channel._basic_cancel",
        "(self, consumer_tag)",
        "A worker that leaves a queue gives back what it has claimed of it.",
    ),
    Internal(
        "kombu.transport.redis",
        "Channel._brpop_read",
        "(self, **options)",
        "Replaced: the answer is that of a script.",
    ),
    Internal(
        "kombu.transport.redis",
        "Channel._brpop_start",
        "(self, timeout=None)",
        "Replaced: a script takes a message and notes it in one step.",
        older=("(self, timeout=1)",),
    ),
    Internal(
        "kombu.transport.redis",
        "Channel._close_clients",
        "(self)",
        "The clients that wait for wake-ups are closed with the others.",
    ),
    Internal(
        "kombu.transport.redis",
        "Channel._connparams",
        "(self, asynchronous=False)",
        "The class of the connections is one that notices an alarm.",
    ),
    Internal(
        "kombu.transport.redis",
        "Channel._create_client",
        "(self, asynchronous=False)",
        "Clients that wait for wake-ups.",
    ),
    Internal(
        "kombu.transport.redis",
        "Channel._flush_brpop_reauth",
        "(self)",
        "Called after each answer, as kombu does.",
        older=("missing",),
    ),
    Internal(
        "kombu.transport.redis",
        "Channel._get_message_priority",
        "(self, message, reverse=False)",
        "Where a message goes that came with another one.",
    ),
    Internal(
        "kombu.transport.redis", "Channel._lookup", "(self, exchange, routing_key, default=None)", "The same."
    ),
    Internal(
        "kombu.transport.redis",
        "Channel._on_connection_disconnect",
        "(self, connection)",
        "The clients that wait for wake-ups belong to a connection.",
    ),
    Internal(
        "kombu.transport.redis", "Channel._pool", "NoneType", "After an alarm its connections are closed."
    ),
    Internal(
        "kombu.transport.redis",
        "Channel._put_fanout",
        "(self, exchange, message, routing_key, **kwargs)",
        "The same, to see what it cannot send.",
    ),
    Internal(
        "kombu.transport.redis",
        "Channel._put",
        "(self, queue, message, **kwargs)",
        "The listener lets Celery make a message and catches it here.",
    ),
    Internal(
        "kombu.transport.redis",
        "Channel._q_for_pri",
        "(self, queue, pri)",
        "The keys of a queue's priorities.",
    ),
    Internal(
        "kombu.transport.redis",
        "Channel._brpop_sent_at",
        "NoneType",
        "Since when a channel waits for an answer.",
        older=("missing",),
    ),
    Internal(
        "kombu.transport.redis",
        "MultiChannelPoller._fd_to_chan",
        "assigned",
        "Which channel a connection belongs to that the event loop watches.",
    ),
    Internal(
        "kombu.transport.redis", "Channel._queue_cycle", "assigned", "In which order queues are looked at."
    ),
    Internal(
        "kombu.transport.redis",
        "MultiChannelPoller._chan_to_sock",
        "assigned",
        "Which connections of a channel the event loop watches.",
    ),
    Internal(
        "kombu.transport.redis",
        "MultiChannelPoller._client_registered",
        "(self, channel, client, cmd)",
        "Whether the event loop watches a client.",
    ),
    Internal(
        "kombu.transport.redis",
        "MultiChannelPoller._register",
        "(self, channel, client, type)",
        "Lets the event loop watch a client.",
    ),
    Internal(
        "kombu.transport.redis",
        "QoS._remove_from_indices",
        "(self, delivery_tag, pipe=None)",
        "Acknowledges a message that no task gets.",
    ),
    Internal("kombu.transport.virtual.base", "Channel._tag_to_queue", "assigned", "The queue of a consumer."),
    Internal("kombu.transport.virtual.base", "QoS._delivered", "NoneType", "What the worker holds."),
    Internal("kombu.transport.virtual.base", "QoS._dirty", "NoneType", "What it has acknowledged since."),
    Internal(
        "kombu.transport.virtual",
        "Transport._deliver",
        "(self, message, queue)",
        "Hands a message to the consumers of a queue.",
    ),
    Internal(
        "kombu.entity",
        "Queue._create_queue",
        "(self, nowait=False, channel=None)",
        "Celery's default queue is created as Celery creates it.",
    ),
    Internal(
        "kombu.messaging", "Consumer._active_tags", "assigned", "Which queue a message of RabbitMQ came from."
    ),
    Internal(
        "kombu.transport.redis",
        "Channel._delete",
        "(self, queue, exchange, routing_key, pattern, *args, **kwargs)",
        "What waits for a queue is deleted with it.",
    ),
    Internal(
        "kombu.transport.redis",
        "Channel._disconnect_pools",
        "(self)",
        "All channels of a process share one pool.",
    ),
    Internal("kombu.transport.redis", "Channel._fanout_queues", "dict", "Such a queue is no list."),
    Internal(
        "kombu.transport.redis",
        "Channel._get_pool",
        "(self, asynchronous=False)",
        "All channels of a process share one pool.",
    ),
    Internal("kombu.transport.redis", "Channel._in_poll", "bool", "Whether a channel waits for an answer."),
    Internal(
        "kombu.transport.redis",
        "Channel._purge",
        "(self, queue)",
        "What waits for a queue is purged with it.",
    ),
    Internal("kombu.transport.virtual.base", "Message._raw", "assigned", "The message as Redis has it."),
    Internal(
        "psycopg2",
        "_psycopg",
        "module",
        "The file of the extension has libpq's functions, which psycopg2 does not offer.",
    ),
    Internal(
        "pymysql.connections",
        "Connection._sock",
        "NoneType",
        "The listener reads the binlog from it without blocking, and the driver cannot.",
    ),
    Internal(
        "redis.connection",
        "AbstractConnection._sock",
        "assigned",
        "Whether an answer is there; `can_read` would read it.",
    ),
    Internal(
        "urllib3.connection",
        "HTTPSConnection._new_conn",
        "(self) -> 'socket.socket'",
        "A webhook may not lead into the private network.",
    ),
)


@pytest.mark.versions
@pytest.mark.parametrize("internal", INTERNALS, ids=lambda each: f"{each.module}.{each.name}")
def test_a_private_name_is_what_it_was(internal: Internal) -> None:
    assert _describe(internal) in {internal.expected, *internal.older}


def test_every_private_name_that_we_use_is_listed() -> None:
    listed = {each.name.rpartition(".")[2] for each in INTERNALS}
    unlisted = {f"{path}: {name}" for path, name in [*_uses(), *_overrides()] if name not in listed}
    assert unlisted == set()


def test_every_private_name_that_is_listed_is_used() -> None:
    used = {name for _, name in [*_uses(), *_overrides(), *_strings()]}
    # An override of what only newer versions have is seen with those.
    expected = [each for each in INTERNALS if "missing" not in each.older or _describe(each) != "missing"]
    assert {each.name for each in expected if each.name.rpartition(".")[2] not in used} == set()


@pytest.mark.versions
def test_mysql_replication_asks_for_the_log_before_it_wants_a_second_connection() -> None:
    """The listener leaves its reader at that moment, and goes on with the first connection's socket."""
    connection = MagicMock(spec=Connection, instance=True)
    connection._sock = MagicMock()
    connection.cursor().fetchone.return_value = ("binlog_checksum", "CRC32")
    found = replication._ask(
        connection, **replication._place("binlog.000003", 120), server_id=7, report_slave={"hostname": "us"}
    )
    assert found is connection._sock
    register, dump = (call.args[0][4:] for call in connection._write_bytes.call_args_list)
    assert register.startswith(b"\x15\7\0\0\0\2us")
    assert dump == b"\x12\x78\0\0\0\1\0\7\0\0\0binlog.000003"


def _describe(internal: Internal) -> str:
    """Return what the name is in the package that is installed."""
    holder: Any = importlib.import_module(internal.module)
    *path, last = internal.name.split(".")
    for each in path:
        holder = getattr(holder, each)
    found = inspect.getattr_static(holder, last, None)
    if isinstance(found, staticmethod | classmethod):
        found = found.__func__
    if inspect.isfunction(found) or inspect.isclass(found) or inspect.isbuiltin(found):
        return str(inspect.signature(found))
    if found is not None or hasattr(holder, last):
        return type(found).__name__
    return "assigned" if f"self.{last} = " in inspect.getsource(holder) else "missing"


@cache
def _modules() -> list[tuple[str, ast.Module, frozenset[str]]]:
    """Return our modules, each with its syntax and the names that it defines."""
    found = []
    for path in sorted(path for package in _OURS for path in (_ROOT / package).rglob("*.py")):
        tree = ast.parse(path.read_text())
        name = ".".join(path.relative_to(_ROOT).with_suffix("").parts).removesuffix(".__init__")
        found.append((name, tree, frozenset(_defined(tree))))
    return found


def _defined(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def _uses() -> Iterator[tuple[str, str]]:
    """Yield the private names, each with the module that uses it, that are not ours."""
    for module, tree, defined in _modules():
        ours = defined | _inherited(module) | _PUBLIC
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith(_OURS):
                yield from ((module, each.name) for each in node.names if _PRIVATE.fullmatch(each.name))
            elif isinstance(node, ast.Attribute) and _PRIVATE.fullmatch(node.attr) and node.attr not in ours:
                yield module, node.attr


def _inherited(module: str) -> frozenset[str]:
    """Return the names that the modules define from which this one's classes inherit."""
    bases = {base.__module__ for each in _classes(module) for base in each.__mro__}
    return frozenset().union(*(defined for name, _, defined in _modules() if name in bases))


def _overrides() -> Iterator[tuple[str, str]]:
    """Yield the private names that our classes define, or annotate, and a package's class among their bases has too."""
    for module, _, _ in _modules():
        for each in _classes(module):
            ours = [base for base in each.__mro__ if base.__module__.startswith(_OURS)]
            others = [base for base in each.__mro__ if base not in ours and not _is_standard(base.__module__)]
            names = {name for base in ours for name in [*vars(base), *inspect.get_annotations(base)]}
            for name in filter(_PRIVATE.fullmatch, names - _PUBLIC):
                if any(name in vars(base) for base in others):
                    yield module, name


def _strings() -> Iterator[tuple[str, str]]:
    """Yield the private names that stand in our sources as text, as for `hasattr`."""
    for module, tree, _ in _modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield module, node.value


def _is_standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


@cache
def _classes(module: str) -> list[type]:
    if module.endswith("__main__"):
        return []
    found = importlib.import_module(module)
    return [each for each in vars(found).values() if inspect.isclass(each) and each.__module__ == module]
