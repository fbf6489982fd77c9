"""The parked changes of CDC_NAME: find them, and send them to their routes again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import ResponseError

from cdc_tasks.changes import position_key
from cdc_tasks.errors import CDCError
from cdc_tasks.record import Command, about, summed
from cdc_tasks.routing.contexts import CONTEXT_HEADER
from cdc_tasks.routing.message_groups import headers_of_key
from cdc_tasks.routing.router import BinlogRouter, Call, Parked, RouteError
from listener.control.commands import CommandQueue
from listener.core.publisher import BrokerAwayError, BrokerError
from listener.daemon.settings import ListenerSettings
from listener.daemon.wiring import STORE_AWAY, checkpoint_store
from listener.publish.parked import ParkedChange, parked_key, parse_parked
from listener.publish.redis.connection import Command as RedisCommand
from listener.publish.redis.connection import RedisConnection
from listener.publish.task_message import EnvelopeError, argsrepr, make_message, send_options

__all__ = [
    "NotParkedError",
    "ParkedStore",
    "chosen",
    "drop_parked",
    "fire",
    "opened",
    "recorded",
    "replay_parked",
    "send",
]

TAKEN = "is no longer parked: someone has just replayed or dropped it"
_PAGE = "500"  # changes to read from Redis at a time


class NotParkedError(CDCError):
    """No change with this id is parked."""


class ParkedStore:
    """The parked changes of CDC_NAME."""

    def __init__(self, redis: RedisConnection, name: str) -> None:
        self._redis = redis
        self._key = parked_key(redis.prefixed(f"cdc:{name}"))

    def __iter__(self) -> Iterator[ParkedChange]:
        cursor: bytes | str = "0"
        while True:
            cursor, fields = self._ask("HSCAN", self._key, cursor, "COUNT", _PAGE)
            for task_id, record in zip(fields[::2], fields[1::2], strict=True):
                yield parse_parked(self._key, task_id, record)
            if cursor == b"0":
                return

    def count(self) -> int:
        """Return how many changes are parked."""
        return int(self._ask("HLEN", self._key))

    def get(self, task_id: str) -> ParkedChange:
        record = self._ask("HGET", self._key, task_id)
        if record is None:
            raise NotParkedError(
                f"{task_id} is not parked.", hint="See what is parked: python -m listener parked list"
            )
        return parse_parked(self._key, task_id.encode(), record)

    def has(self, task_id: str) -> bool:
        return bool(self._ask("HEXISTS", self._key, task_id))

    def remove(self, task_id: str) -> bool:
        """Remove it; return whether it was still there."""
        return bool(self._ask("HDEL", self._key, task_id))

    def _ask(self, *command: str | bytes) -> Any:
        words: RedisCommand = command
        (answer,) = self._redis.send([words])
        if isinstance(answer, ResponseError):
            raise self._redis.refusal(answer)
        return answer


@contextmanager
def opened(settings: ListenerSettings) -> Iterator[ParkedStore]:
    redis = checkpoint_store(settings)
    try:
        yield ParkedStore(redis, settings.cdc_name)
    except BrokerAwayError as error:
        if error.hint:
            raise
        raise BrokerAwayError(error.message, hint=STORE_AWAY) from error
    finally:
        redis.close()


@contextmanager
def recorded(
    settings: ListenerSettings, verb: str, names: Sequence[str], done: str
) -> Iterator[list[tuple[bool, str]]]:
    """Record who did what to which changes. The block adds the results; an error is recorded too."""
    command, outcomes = Command(verb=verb, arguments=about(names)), list[tuple[bool, str]]()
    try:
        yield outcomes
    except CDCError as error:
        _note(settings, command, error)
        raise
    if outcomes:
        _note(settings, command, summed(outcomes, done))


def _note(settings: ListenerSettings, command: Command, result: str | CDCError) -> None:
    """Write the record; if that fails, the action is not undone."""
    redis = checkpoint_store(settings)
    try:
        CommandQueue(redis, settings.cdc_name).note(command, result)
    except (BrokerAwayError, BrokerError) as error:
        typer.echo(f"This is not in the record: {error.message}", err=True)
    finally:
        redis.close()


def chosen(
    store: ParkedStore, ids: Sequence[str] | None, task: str | None, *, everything: bool
) -> list[ParkedChange]:
    """Return the changes that the arguments name, in the order of the log."""
    if ids:
        return [store.get(task_id) for task_id in ids]
    if not everything:
        raise typer.BadParameter("name some ids, or use --all")
    return sorted((each for each in store if task in {None, each.task}), key=_order)


def _order(parked: ParkedChange) -> tuple[Any, ...]:
    change = parked.change
    return change.committed_at, position_key(change.position), parked.id


def fire(parked: ParkedChange, router: BinlogRouter, app: Celery) -> Call | Exception | None:
    """Return what the change's route fires now: a task, nothing, or an error again."""
    try:
        route = parked.find_route(router)
        make_message(app, route)
    except (RouteError, EnvelopeError) as error:
        return error
    if parked.arguments is not None:  # of several changes, or of one whose row is not stored
        return Call(route, parked.change, b"", key=parked.key)
    fired = next((each for each in router.tasks_for([parked.change]) if each.route is route), None)
    return fired.error if isinstance(fired, Parked) else fired


def send(app: Celery, parked: ParkedChange, call: Call) -> Exception | None:
    """Send the task; return why the broker refuses it, None if it is accepted. Raise BrokerAwayError."""
    route, arguments, options = call.route, _arguments(parked, call), send_options(call.route)
    kwargs = _kwargs(parked, call)
    if call.key is not None:
        options["headers"] = {**options.get("headers", {}), **headers_of_key(call.key, route.on_failure)}
    if parked.change.context is not None and route.batch is None:
        options["headers"] = {**options.get("headers", {}), CONTEXT_HEADER: dict(parked.change.context)}
    shown = argsrepr(parked.change.kind, parked.change.position)
    refusals: Any = app.connection_for_write().channel_errors
    try:
        app.send_task(
            route.task, arguments, kwargs, task_id=parked.id, argsrepr=shown, kwargsrepr="{}", **options
        )
    except OperationalError as error:
        raise BrokerAwayError(
            f"The broker did not accept {parked.id}, which stays parked: {error}",
            hint="See what is wrong: python -m listener check",
        ) from error
    except refusals as error:
        return BrokerError(str(error))
    return None


def replay_parked(
    store: ParkedStore, parked: ParkedChange, router: BinlogRouter, app: Celery
) -> tuple[bool, str]:
    """Send a change to its route again; return whether that succeeded, and the result. Raise BrokerAwayError."""
    if not store.has(parked.id):
        return True, TAKEN
    fired = fire(parked, router, app)
    refusal = send(app, parked, fired) if isinstance(fired, Call) else fired
    if refusal is not None:
        return False, f"stays parked: {type(refusal).__name__}: {refusal}"
    store.remove(parked.id)  # after sending: twice with one id is better than never
    return True, f"sent to {parked.task}" if fired else "no longer fires"


def drop_parked(store: ParkedStore, parked: ParkedChange) -> str:
    """Drop a change; return the result."""
    return "dropped" if store.remove(parked.id) else TAKEN


def _arguments(parked: ParkedChange, call: Call) -> list[Any]:
    if parked.arguments is not None:
        return list(parked.arguments)
    arguments: list[Any] = json.loads(b"[%b]" % call.arguments)
    if call.route.batch is None:
        return arguments
    if call.route.kwargs is not None:
        return [[json.loads(b"{%b}" % call.kwargs)]]
    return [arguments if call.route.args is None else [arguments]]


def _kwargs(parked: ParkedChange, call: Call) -> dict[str, Any]:
    if parked.arguments is not None:
        return dict(parked.kwargs or {})
    named: dict[str, Any] = json.loads(b"{%b}" % call.kwargs) if call.route.batch is None else {}
    return named
