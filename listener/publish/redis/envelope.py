"""A task's message as stored in Redis: Celery and kombu create one, which becomes a template."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any, Final, NamedTuple
from uuid import uuid4

import orjson
from celery import Celery
from kombu import Producer
from kombu.utils.json import dumps
from pybase64 import b64encode

from cdc_tasks.routing.contexts import CONTEXT_HEADER
from cdc_tasks.routing.message_groups import headers_of_key
from cdc_tasks.routing.router import Route, task_id
from listener.publish.kombu.internals import check_kombu, expiry_of
from listener.publish.redis.connection import Command, address_of, broker_channel, translated
from listener.publish.task_message import (
    CONTEXT,
    ETA,
    EXPIRES,
    ID,
    KIND,
    POSITION,
    EnvelopeError,
    Kind,
    Timing,
    check_plain,
    durable_queues,
    make_message,
    shown_kind,
    split_body,
)

__all__ = ["Envelope", "Envelopes", "Keyed", "KeyedMessages"]

_BODY = "cdc-0body"
_KEY = "cdc-0group"
# Filled in for each message; KIND is filled in for each kind of change.
_CONTEXT: Final = f'"{CONTEXT}"'  # with its quotation marks: replaced by an object
_PLACES: Final = (_BODY, ID, POSITION, ETA, EXPIRES, _KEY, _CONTEXT)
_PLACE: Final = re.compile("|".join(_PLACES))
_NO_TIMES: Final = (b"", b"")
_MOST_REMEMBERED: Final = 20_000  # kinds of change, each with a route
_MOST_TEMPLATES: Final = 5_000


# (arguments, keyword arguments, the change's id, position) -> message
_Render = Callable[[bytes, bytes, bytes, bytes], bytes]


# The same, and the key
_RenderKeyed = Callable[[bytes, bytes, bytes, bytes, str], bytes]


class KeyedMessages(NamedTuple):
    """The same messages with a key, and the record of the key's owner in Redis."""

    render: _RenderKeyed
    # A message that waits for its key: its list, a line feed and the message.
    render_waiting: _RenderKeyed
    # (the change's id, position) -> the beginning of the record of the message as its key's owner. A time in seconds
    # and "]" follow.
    owner: Callable[[bytes, bytes], bytes]


class Envelope(NamedTuple):
    """The messages of one route and kind of change."""

    keys: tuple[str, ...]  # the Redis lists for such a message
    expiries: tuple[Command, ...]  # sent after it, for a queue that expires when it is not used
    render: _Render
    of_key: Keyed
    in_context: _InContext  # creates them if the transaction has a context


class _Template(NamedTuple):
    """The messages of one route, for any kind of change: they differ in a few characters."""

    keys: tuple[str, ...]
    expiries: tuple[Command, ...]
    # (the kind, as in the message) -> messages without and with a key, and with a context
    renders: Callable[[bytes], tuple[_Render, KeyedMessages, _InContext]]

    def of(self, kind: Kind) -> Envelope:
        shown = dumps(shown_kind(kind))[1:-1].encode()
        return Envelope(self.keys, self.expiries, *self.renders(shown))


class Envelopes:
    """Creates envelopes: kombu sends a task, and we capture the message before it goes to Redis.

    This happens once per route, over one connection, for any number of tables of the route.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._channel: Any = None
        self._stack = ExitStack()
        self._templates: dict[tuple[Any, ...], _Template] = {}  # by `Route.sent_as`
        self.made: dict[tuple[tuple[Any, ...], Kind], Envelope] = {}  # by the same, and the kind
        # The Redis lists of all envelopes, in order of creation.
        self.queues: dict[str, None] = {}

    def of(self, route: Route, kind: Kind) -> Envelope:
        """Return the envelope of a route's tasks, and remember it in `made`. It may declare a queue at the broker.

        Raises EnvelopeError, BrokerError, BrokerAwayError.
        """
        template = self._templates.get(route.sent_as) or self._make(route)
        if len(self.made) >= _MOST_REMEMBERED:
            self.made.clear()
        return self.made.setdefault((route.sent_as, kind), template.of(kind))

    def forget(self) -> None:
        """Create all of them again: this may be another broker, without our queues."""
        self._templates.clear()
        self.made.clear()
        self.queues.clear()
        self.close()

    def close(self) -> None:
        """Close the connection; safe to call twice."""
        self._channel = None
        self._stack.close()

    def _make(self, route: Route) -> _Template:
        try:
            with translated(address_of(self._app)):
                commands, timing = self._commands(route)
        except LookupError as error:  # kombu's, e.g. of an exchange with a name that it does not declare
            self.close()
            raise EnvelopeError(
                f"kombu finds no queue for the task {route.task}: {error!r}.",
                hint="Correct queue=, exchange= and routing_key= of the task, or of its route.",
                code="no_queue",
            ) from error
        except BaseException:
            self.close()
            raise
        _check(route.task, commands)
        pushes = {key: message for name, key, message in commands if name == "lpush"}
        if route.key is not None and len(pushes) > 1:
            raise EnvelopeError(
                f"The task {route.task} has a key, but would go to several queues: {', '.join(pushes)}.",
                hint="Bind only one queue to its exchange, or leave key= out of the route.",
                code="several_queues",
            )
        expiries = tuple(("PEXPIRE", key, str(ms)) for name, key, ms in commands if name == "pexpire")
        template = _Template(tuple(pushes), expiries, _renders(pushes, route, timing))
        self.queues.update(dict.fromkeys(pushes))
        if len(self._templates) >= _MOST_TEMPLATES:  # each enqueued task may have its own time
            self._templates.clear()
        return self._templates.setdefault(route.sent_as, template)

    def _commands(self, route: Route) -> tuple[_Commands, Timing | None]:
        if self._channel is None:
            self._channel = self._stack.enter_context(broker_channel(self._app))
        commands, timing = _catch(self._app, self._channel, route)
        if not commands:  # workers bind their queues at start-up: none has yet
            for queue in durable_queues(self._app):
                queue(self._channel).declare()
            commands, timing = _catch(self._app, self._channel, route)
        return commands, timing


_Commands = list[tuple[str, str, Any]]  # name, key, value


class _Catcher:
    """Replaces the last step of a kombu channel: it records the commands, and runs none.

    `_put` and `_put_fanout` are what kombu requires of each of its transports without an exchange
    (`kombu.transport.virtual`): they get a message once its destination is known.
    """

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self.commands: _Commands = []
        channel._put, channel._put_fanout = self._put, self._put_fanout  # noqa: SLF001  # kombu's hooks
        self._place: Callable[[str, int], str] = channel._q_for_pri  # noqa: SLF001  # the keys of a queue's priorities
        self._priority: Callable[..., int] = channel._get_message_priority  # noqa: SLF001  # the same

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
        channel = self._channel
        self._add("lpush", self._place(queue, self._priority(message, reverse=False)), dumps(message))
        if milliseconds := expiry_of(channel, queue):
            for step in channel.priority_steps:
                self._add("pexpire", self._place(queue, step), milliseconds)

    def _put_fanout(self, exchange: str, message: dict[str, Any], *_: Any, **__: Any) -> None:
        self._add("publish", exchange, dumps(message))

    def _add(self, name: str, key: str, value: Any) -> None:
        self.commands.append((name, f"{self._channel.global_keyprefix}{key}", value))


def _catch(app: Celery, channel: Any, route: Route) -> tuple[_Commands, Timing | None]:
    """Return the Redis commands that Celery's `send_task` would run: its steps without its side effects."""
    check_kombu()
    catcher = _Catcher(channel)
    message, options, timing = make_message(app, route)
    check_plain(app, route.task, options)
    app.amqp.send_task_message(Producer(channel), route.task, message, retry=False, **options)
    return catcher.commands, timing


def _check(task: str, commands: _Commands) -> None:
    names = {name for name, _, _ in commands}
    if "publish" in names:
        raise EnvelopeError(
            f"The task {task} would be broadcast, but Redis does not keep a broadcast for a stopped worker.",
            hint="Send it to a queue in task_routes of celeryconfig.py, and broadcast from that task.",
            code="broadcast",
        )
    if "lpush" not in names:
        raise EnvelopeError(
            f"The task {task} would go to no queue: none is bound to its exchange.",
            hint="Correct task_routes or task_queues in celeryconfig.py.",
            code="no_queue",
        )


def _renders(
    pushes: Mapping[str, str], route: Route, timing: Timing | None
) -> Callable[[bytes], tuple[_Render, KeyedMessages, _InContext]]:
    """Return a function from the kind of change to the functions that create messages like that of `pushes`."""
    queue, text = next(iter(pushes.items()))
    message = json.loads(text)
    head, middle, end = split_body(b64decode(message["body"]))
    tail = middle + end
    message["body"] = _BODY
    # Differs from earlier messages with the same task ids: kombu keys what is unacknowledged by delivery tag.
    # Two enqueued tasks may have the same id.
    name = ID if route.id else f"{ID}.{POSITION}"
    message["properties"]["delivery_tag"] = f"{name}.{uuid4().hex[:8]}"
    plain, pick = _template(message, route)
    of_key = headers_of_key(_KEY, route.on_failure)
    keyed, pick_keyed = _template(_with(message, of_key), route)
    to_list = f"{queue}\n".encode()
    in_list = to_list.replace(b"%", b"%%")
    owner = _owner(message["properties"]["delivery_tag"], route)

    def renders(kind: bytes) -> tuple[_Render, KeyedMessages, _InContext]:
        shown = kind.replace(b"%", b"%%")
        mine = plain.replace(KIND.encode(), shown)
        with_key = keyed.replace(KIND.encode(), shown)

        def render(arguments: bytes, kwargs: bytes, change_id: bytes, position: bytes) -> bytes:
            body = head + arguments + (middle + kwargs + end if kwargs else tail)
            message: bytes = mine % pick((b64encode(body), change_id, position))
            return message

        def render_timed(arguments: bytes, kwargs: bytes, change_id: bytes, position: bytes) -> bytes:
            body = head + arguments + (middle + kwargs + end if kwargs else tail)
            times = (each.encode() for each in timing.from_now()) if timing else ()
            message: bytes = mine % pick((b64encode(body), change_id, position, *times))
            return message

        def keyed_render(template: bytes) -> _RenderKeyed:
            def render(arguments: bytes, kwargs: bytes, change_id: bytes, position: bytes, key: str) -> bytes:
                body = head + arguments + (middle + kwargs + end if kwargs else tail)
                values = b64encode(body), change_id, position, b"", b"", orjson.dumps(key)[1:-1]
                message: bytes = template % pick_keyed(values)
                return message

            def render_timed(
                arguments: bytes, kwargs: bytes, change_id: bytes, position: bytes, key: str
            ) -> bytes:
                body = head + arguments + (middle + kwargs + end if kwargs else tail)
                times = (each.encode() for each in timing.from_now()) if timing else ()
                values = b64encode(body), change_id, position, *times, orjson.dumps(key)[1:-1]
                message: bytes = template % pick_keyed(values)
                return message

            return render_timed if timing else render

        in_context = _InContext(
            message=message,
            route=route,
            of_key=of_key,
            to_list=to_list,
            parts=(head, middle, end),
            timing=timing,
            kind=shown,
            owner=owner,
        )
        keyed_messages = KeyedMessages(keyed_render(with_key), keyed_render(in_list + with_key), owner)
        return render_timed if timing else render, keyed_messages, in_context

    return renders


@dataclass(kw_only=True)
class _InContext:
    """The same messages if the transaction has a context, a JSON object."""

    message: dict[str, Any]
    route: Route
    of_key: Mapping[str, Any]  # headers of one with a key
    to_list: bytes  # prefix of one that waits for its key
    parts: tuple[bytes, bytes, bytes]  # of the body
    timing: Timing | None
    kind: bytes
    owner: Callable[[bytes, bytes], bytes]

    @cached_property
    def render(self) -> Callable[[bytes, bytes, bytes, bytes, bytes], bytes]:
        """Creates a message: the context, then as `_Render`."""
        plain, pick = self._plain
        (head, middle, end), times, has_times = self.parts, self._times, self.timing is not None
        tail = middle + end

        def render(
            context: bytes, arguments: bytes, kwargs: bytes, change_id: bytes, position: bytes
        ) -> bytes:
            body = b64encode(head + arguments + (middle + kwargs + end if kwargs else tail))
            due, late = times() if has_times else _NO_TIMES
            message: bytes = plain % pick((body, change_id, position, due, late, b"", context))
            return message

        return render

    def keyed(self, context: bytes) -> _KeyedInContext:
        """Return the functions that create messages with a key in this context."""
        return _KeyedInContext(self, context)

    def render_keyed(
        self, context: bytes, arguments: tuple[bytes, bytes], stamp: tuple[bytes, bytes], key: str
    ) -> bytes:
        """Return a message with a key. `arguments` are both kinds, `stamp` is id and position."""
        (text, pick), (head, middle, end) = self._keyed, self.parts
        body = b64encode(b"%b%b%b%b%b" % (head, arguments[0], middle, arguments[1], end))
        values = (body, *stamp, *self._times(), orjson.dumps(key)[1:-1], context)
        message: bytes = text % pick(values)
        return message

    def _times(self) -> tuple[bytes, bytes]:
        if self.timing is None:
            return _NO_TIMES
        due, late = self.timing.from_now()
        return due.encode(), late.encode()

    @cached_property
    def _plain(self) -> tuple[bytes, Callable[[tuple[bytes, ...]], Any]]:
        return self._of_kind({})

    @cached_property
    def _keyed(self) -> tuple[bytes, Callable[[tuple[bytes, ...]], Any]]:
        return self._of_kind(self.of_key)

    def _of_kind(self, headers: Mapping[str, Any]) -> tuple[bytes, Callable[[tuple[bytes, ...]], Any]]:
        text, pick = _template(_with(self.message, {**headers, CONTEXT_HEADER: CONTEXT}), self.route)
        return text.replace(KIND.encode(), self.kind), pick


class _KeyedInContext:
    """The same as KeyedMessages, with a context."""

    __slots__ = ("_context", "_others")

    def __init__(self, others: _InContext, context: bytes) -> None:
        self._others = others
        self._context = context

    def render(self, arguments: bytes, kwargs: bytes, change_id: bytes, position: bytes, key: str) -> bytes:
        return self._others.render_keyed(self._context, (arguments, kwargs), (change_id, position), key)

    def render_waiting(
        self, arguments: bytes, kwargs: bytes, change_id: bytes, position: bytes, key: str
    ) -> bytes:
        return self._others.to_list + self.render(arguments, kwargs, change_id, position, key)

    @property
    def owner(self) -> Callable[[bytes, bytes], bytes]:
        return self._others.owner


Keyed = KeyedMessages | _KeyedInContext


def _with(message: Mapping[str, Any], headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the message with more headers."""
    return {**message, "headers": {**message["headers"], **headers}}


def _owner(delivery_tag: str, route: Route) -> Callable[[bytes, bytes], bytes]:
    """Return the function that creates the start of an owner's record: `["delivery tag","task id","task",`."""
    end = task_id("", route)
    middle = f'{delivery_tag.replace(ID, end)}","'.encode()
    end_of_id = b'%b",%b,' % (end.encode(), orjson.dumps(route.task))
    place = POSITION.encode()

    def owner(change_id: bytes, position: bytes) -> bytes:
        tag = middle if route.id else middle.replace(place, position)
        return b'["%b%b%b%b' % (change_id, tag, change_id, end_of_id)

    return owner


def _template(message: dict[str, Any], route: Route) -> tuple[bytes, Callable[[tuple[bytes, ...]], Any]]:
    """Return the message with places to fill in, and the function that orders values by their places."""
    text = dumps(message).replace("%", "%%")
    pick = itemgetter(*(_PLACES.index(found) for found in _PLACE.findall(text)))
    return _PLACE.sub("%b", text.replace(ID, task_id(ID, route))).encode(), pick
