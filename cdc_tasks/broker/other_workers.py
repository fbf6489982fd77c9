"""Other workers that harm ours: they consume from our queues, or have taken our messages with kombu's transport.

`python -m listener check` and each worker that starts look for them.
"""

from __future__ import annotations

import json
from threading import Thread
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import redis
import structlog
from celery.bootsteps import StartStopStep
from kombu.exceptions import KombuError

from cdc_tasks.broker.queues import OLD_NAMES
from cdc_tasks.installed import is_foreign
from cdc_tasks.words import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

__all__ = [
    "AskOtherWorkers",
    "OtherWorker",
    "foreign_workers",
    "give_back",
    "queues_taken",
    "unacked_by_kombu",
]

log = structlog.get_logger()

_OUR_TASK: Final = "cdc_tasks.deliver"  # each of our workers has it
_MAX_SCANNED: Final = 10_000  # messages: enough to find some


class OtherWorker(NamedTuple):
    """A worker that harms ours, or messages that such a worker has taken."""

    who: str
    found: str
    hint: str


def queues_taken(
    registered: Mapping[str, Sequence[str]],
    active: Mapping[str, Sequence[Mapping[str, Any]]],
    needed: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> set[str]:
    """Return the queues that have a worker with the tasks for them; parameters as for `foreign_workers`."""
    return {
        queue["name"]
        for worker, queues in active.items()
        for queue in queues
        if _can_do(registered.get(worker, ()), needed.get(queue["name"], ()))
    }


def foreign_workers(
    registered: Mapping[str, Sequence[str]],
    active: Mapping[str, Sequence[Mapping[str, Any]]],
    ours: Collection[str],
    needed: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> Iterator[OtherWorker]:
    """Yield the workers that consume from our queues without the tasks for them, and so drop these messages.

    `registered` and `active` are the answers of `celery inspect registered` and `active_queues`. `needed`: the known
    tasks that are sent to each queue. A worker of another application that has all of them is not reported.
    """
    for worker, queues in sorted(active.items()):
        tasks = registered.get(worker)
        if tasks is None:
            continue
        at = sorted({queue["name"] for queue in queues} & set(ours))
        names = [name for name in at if not _can_do(tasks, needed.get(name, ()))]
        if names:
            yield OtherWorker(
                who=worker,
                found=f"takes from {', '.join(names)} without having our tasks, and drops those that it gets",
                hint="\n".join(
                    f"celery -A cdc_tasks control -d {worker} cancel_consumer {name}" for name in names
                )
                + "\nand start it with its own queues from now on: worker -Q …",
            )


def _can_do(tasks: Sequence[str], needed: Collection[str]) -> bool:
    names = _names(tasks)
    return _OUR_TASK in names or (bool(needed) and names.issuperset(needed))


def _names(tasks: Sequence[str]) -> set[str]:
    return {task.partition(" ")[0] for task in tasks}  # after the name come the requested options


def unacked_by_kombu(client: redis.Redis, ours: Collection[str], *, prefix: str = "") -> OtherWorker | None:
    """Return a finding if kombu's own transport has taken our messages; None if it has not.

    Raise RedisError if Redis fails.
    """
    number = sum(1 for _ in _ours_in_unacked(client, ours, prefix))
    if not number:
        return None
    return OtherWorker(
        who=f"{prefix}unacked",
        found=f"{counted(number, 'message is', 'messages are')} unacknowledged with kombu's own transport, taken from "
        "our queues by a worker of version 0.1, of another application, or a dead one; our workers do not touch them",
        hint="Stop such workers with SIGTERM: they then give back their messages. The rest belongs to dead workers: "
        "python -m cdc_tasks give-back-unacked",
    )


# KEYS: unacked, its index, the queue; ARGV: the delivery tag, the message
_GIVE_BACK = """
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('RPUSH', KEYS[3], ARGV[2])
return 1
"""


def give_back(client: redis.Redis, ours: Collection[str], *, prefix: str = "") -> int:
    """Return our messages that kombu's own transport has taken to their queues, and return how many.

    Raise RedisError if Redis fails.
    """
    script = client.register_script(_GIVE_BACK)
    places = {tag: place for place in _ours_in_unacked(client, ours, prefix) for tag in [place.tag]}
    newest_first = [
        tag for tag in client.zrevrange(f"{prefix}unacked_index", 0, -1) if tag in places
    ]  # the oldest is pushed last, and is the next to be taken
    rest = [tag for tag in places if tag not in set(newest_first)]
    return sum(
        int(
            script(
                keys=[f"{prefix}unacked", f"{prefix}unacked_index", f"{prefix}{places[tag].queue}"],
                args=[tag, places[tag].message],
            )
        )
        for tag in rest + newest_first
    )


class _Unacknowledged(NamedTuple):
    tag: bytes
    queue: str
    message: str


def _ours_in_unacked(client: redis.Redis, ours: Collection[str], prefix: str) -> Iterator[_Unacknowledged]:
    for number, (tag, entry) in enumerate(client.hscan_iter(f"{prefix}unacked", count=500)):
        if number >= _MAX_SCANNED:
            return
        queue, message = _read(entry)
        if queue in ours:
            yield _Unacknowledged(tag, queue, message)


def _read(entry: bytes) -> tuple[str, str]:
    """Return the queue of kombu's entry, and the original message; no queue if it cannot be read."""
    try:
        message, _exchange, routing_key = json.loads(entry)
        message["headers"]["redelivered"] = True
        message["properties"]["delivery_info"]["redelivered"] = True
        return str(routing_key), json.dumps(message)
    except (ValueError, TypeError, KeyError, RecursionError):
        return "", ""


# --- Checks at a worker's start-up ----------------------------------------------------------------------

_ANSWER_WITHIN: Final = 1.0  # seconds


class _Once(StartStopStep):
    """Checks once; `--without-mingle` turns it off, like Celery's own questions."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, without_mingle: bool = False, **options: Any) -> None:  # noqa: FBT001, FBT002  # Celery's
        super().__init__(consumer, **options)
        self.enabled = not without_mingle
        self._has_looked = False

    def start(self, consumer: Any) -> None:
        """Query in a thread while the worker starts to work, because the answers take a second."""
        if not self._has_looked:
            self._has_looked = True
            Thread(target=self._look, args=[consumer.app], name="ask-other-workers", daemon=True).start()

    def _look(self, app: Any) -> None:
        raise NotImplementedError


class AskOtherWorkers(_Once):
    """Queries the other workers of cdc-tasks' own app, and checks the messages that kombu's own transport has taken."""

    def _look(self, app: Any) -> None:
        _look(app, [_ask_workers, _look_at_unacked])


class LookAtUnacked(_Once):
    """Checks the messages that kombu's own transport has taken, e.g. in workers before `cdc_tasks.install`."""

    def _look(self, app: Any) -> None:
        if is_foreign(app):
            _look(app, [_look_at_unacked])


def _look(app: Any, questions: Sequence[Callable[[Any, Any], None]]) -> None:
    with app.connection_for_read() as connection:
        try:
            for ask in questions:
                ask(app, connection)
        except (
            OSError,
            KombuError,
            redis.RedisError,
            *connection.connection_errors,
            *connection.channel_errors,
        ) as error:
            log.info("other_workers_unknown", error=repr(error))


def _ask_workers(app: Any, connection: Any) -> None:
    inspect = app.control.inspect(timeout=_ANSWER_WITHIN, connection=connection)
    registered, active = inspect.registered() or {}, inspect.active_queues() or {}
    for foreign in foreign_workers(registered, active, app.amqp.queues):
        _warn("foreign_worker_takes_our_tasks", foreign)
    own = set(app.amqp.queues.consume_from)  # this worker does not answer yet
    if lacking := set(app.amqp.queues) - own - queues_taken(registered, active):
        log.info("queues_without_worker", queues=sorted(lacking))


def _look_at_unacked(app: Any, connection: Any) -> None:
    if connection.transport.driver_type != "redis":
        return
    with connection.channel() as channel:
        client = redis.Redis(connection_pool=channel.pool)
        if found := unacked_by_kombu(client, [*app.amqp.queues, *OLD_NAMES], prefix=channel.global_keyprefix):
            _warn("messages_unacked_by_kombus_transport", found)


def _warn(event: str, other: OtherWorker) -> None:
    log.warning(event, who=other.who, found=other.found, hint=other.hint)
