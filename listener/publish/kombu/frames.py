"""A task's message as RabbitMQ reads it: kombu and py-amqp create the frames of one, which become a template.

AMQP 0-9-1, 4.2: a message is a method frame (basic.publish), a content header frame with the properties, and the body
in frames of up to `frame_max` bytes. A frame is its type, channel and size (1, 2 and 4 bytes), its payload, and 0xCE.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from operator import itemgetter
from struct import pack, unpack_from
from types import SimpleNamespace
from typing import Any, Final

from amqp import serialization, spec
from amqp.method_framing import frame_writer
from kombu import Producer

from cdc_tasks.changes import Context
from cdc_tasks.routing.router import Call, Route, task_id
from listener.publish.kombu.message import KEY, MessageTemplate
from listener.publish.spans import Spans
from listener.publish.task_message import (
    CONTEXT,
    ETA,
    EXPIRES,
    ID,
    KIND,
    POSITION,
    TRACE,
    EnvelopeError,
    Kind,
    shown_kind,
)

__all__ = ["Frames", "Render"]

Render = Callable[[Call], bytes]  # all frames of the call's message

_HEADER, _BODY, _END = 2, 3, b"\xce"
_FRAME: Final = 8  # bytes of a frame without its payload
_HAS_CONTENT_TYPE, _HAS_ENCODING, _HAS_HEADERS = 1 << 15, 1 << 14, 1 << 13  # the first flags, in this order
_SHOWN: Final = f"<{KIND} {POSITION}>"


def _long(place: str) -> bytes:
    """Return a place as in the headers: a long string after its length."""
    return b"S" + pack(">I", len(place)) + place.encode()


# Each place after its length; the number of its value, and the format of the length.
_PLACES: Final = {
    _long(ID): (0, ">I"),
    pack("B", len(ID)) + ID.encode(): (0, "B"),  # the short string correlation_id
    _long(_SHOWN): (1, ">I"),
    _long(ETA): (2, ">I"),
    _long(EXPIRES): (3, ">I"),
    _long(KEY): (4, ">I"),
    _long(CONTEXT): (5, ">I"),
    pack("B", len(TRACE)) + TRACE.encode() + _long(TRACE): (6, ""),  # a header with its name
}
_TABLES: Final = frozenset({5})  # values that are an object instead of text
_PLACE: Final = re.compile(b"(%b)" % b"|".join(map(re.escape, _PLACES)), re.DOTALL)
_NO_TIMES: Final = (b"", b"")
_WHOLE: Final = frozenset({6})  # values that are headers with their names, and have no length before them
_NOTHING: Final = (b"",) * 5  # of the values before the context
_NEEDED: Final = Counter({(0, ">I"): 2, (0, "B"): 1, (1, ">I"): 1})


class Frames:
    """The frames of one route's messages on one channel."""

    def __init__(
        self, channel: Any, message: MessageTemplate, route: Route, spans: Spans | None = None
    ) -> None:
        """Let kombu publish a message on the channel, and capture it. Raise EnvelopeError if it is not as expected."""
        self._message = message
        self._spans = spans
        self._suffix = task_id("", route).encode()
        self._channel = channel.channel_id
        self._chunk = channel.connection.frame_max - _FRAME
        self._method, properties = _split(_caught(channel, message))
        self._start, self._table, self._parts = _parsed(properties)

    def of(self, kind: Kind) -> Render:
        """Return the function that creates the messages of this kind of change."""
        body_of, timing, has_context = self._message.body, self._message.timing, self._message.has_context
        spans = self._spans
        suffix, largest, channel = self._suffix, self._chunk, self._channel
        shown = f"<{shown_kind(kind)} ".encode()
        shapes: dict[tuple[int, ...], tuple[bytes, Callable[[Any], Any]]] = {}

        def render(call: Call) -> bytes:
            change_id, position = call.change.stamp
            values: tuple[bytes, ...] = change_id + suffix, position
            if timing:
                values += tuple(each.encode() for each in timing.from_now())
            if call.key is not None:
                values = *values[:2], *(values[2:] or _NO_TIMES), call.key.encode()
            if has_context:
                trace = b"" if spans is None else _headers(spans.headers(call.change))
                values = *values, *_NOTHING[len(values) :], _table(call.change.commit.context), trace
            lengths = tuple(map(len, values))
            try:
                text, pick = shapes[lengths]
            except KeyError:
                text, pick = shapes[lengths] = self._shape(shown, lengths)
            body = body_of(call)
            filled: bytes = text % (pack(">Q", len(body)), *pick(values))
            if len(body) > largest:
                return filled + self._in_frames(body)
            return b"%b%b%b\xce" % (filled, pack(">BHI", _BODY, channel, len(body)), body)

        return render

    def _shape(self, shown: bytes, lengths: tuple[int, ...]) -> tuple[bytes, Callable[[Any], Any]]:
        """Return the method and header frames of messages whose values have these lengths, and the order of the values.

        The first place is the body's length.
        """
        text, grown, grown_in_table, order = b"", 0, 0, []
        for number, part in enumerate(self._parts):
            if number % 2:
                value, width = _PLACES[part]
                before, after = (shown, b">") if value == 1 else (b"", b"")
                length = len(before) + lengths[value] + len(after)
                kind = b"F" if value in _TABLES else b"S"
                prefix = (
                    b""
                    if value in _WHOLE
                    else pack(width, length)
                    if width == "B"
                    else kind + pack(width, length)
                )
                text += _literal(prefix + before) + b"%b" + after
                order.append(value)
                grown += len(prefix) + length - len(part)
                grown_in_table += len(prefix) + length - len(part) if width != "B" else 0
            else:
                text += _literal(part)
        start = self._start + pack(">I", self._table + grown_in_table)
        size = 12 + len(start) + sum(map(len, self._parts)) + grown
        header = pack(">BHI", _HEADER, self._channel, size) + pack(">HH", *_CONTENT)
        return b"%b%b%%b%b%b\xce" % (*map(_literal, (self._method, header, start)), text), itemgetter(*order)

    def _in_frames(self, body: bytes) -> bytes:
        """Return a large body in several frames."""
        parts = (body[at : at + self._chunk] for at in range(0, len(body), self._chunk))
        return b"".join(pack(">BHI", _BODY, self._channel, len(part)) + part + _END for part in parts)


_CONTENT: Final = (spec.Basic.CLASS_ID, 0)  # the class of the header frame, and its weight, which is not used


@lru_cache(maxsize=64)
def _table(context: Context | None) -> bytes:
    """Return a context as a field table, without its length (AMQP 0-9-1, 4.2.5.5)."""
    values = {} if context is None else dict(context.values)
    encoded: bytes = serialization.dumps("F", (values,))
    return encoded[4:]


def _headers(headers: Mapping[str, str]) -> bytes:
    """Return headers as entries of a field table."""
    encoded: bytes = serialization.dumps("F", (dict(headers),))
    return encoded[4:]


def _literal(text: bytes) -> bytes:
    return text.replace(b"%", b"%%")


def _caught(channel: Any, message: MessageTemplate) -> bytes:
    """Return what py-amqp would write for a message with its places unfilled."""
    connection, written = channel.connection, list[bytes]()
    ours = SimpleNamespace(frame_max=connection.frame_max, bytes_sent=0)
    writer, connection.frame_writer = (
        connection.frame_writer,
        frame_writer(ours, SimpleNamespace(write=lambda data: written.append(bytes(data)))),
    )
    try:
        message.publish_unfilled(Producer(channel, auto_declare=False))
    finally:
        connection.frame_writer = writer
    return b"".join(written)


def _split(frames: bytes) -> tuple[bytes, bytes]:
    """Return the method frame, and the part of the header frame after the body's length."""
    first = _FRAME + unpack_from(">I", frames, 3)[0]
    size = unpack_from(">I", frames, first + 3)[0]
    return frames[:first], frames[first + 7 + 12 : first + 7 + size]


def _parsed(properties: bytes) -> tuple[bytes, int, list[bytes]]:
    """Return the part before the headers' length, that length, and the rest: every second part is one of `_PLACES`."""
    flags, at = unpack_from(">H", properties)[0], 2
    for flag in (_HAS_CONTENT_TYPE, _HAS_ENCODING):
        at += 1 + properties[at] if flags & flag else 0
    parts = _PLACE.split(properties[at + 4 :])
    found = [_PLACES[part] for part in parts[1::2]]
    if not flags & _HAS_HEADERS or not Counter(found) >= _NEEDED:
        raise EnvelopeError(
            "Celery created a message without a task's id, root_id, argsrepr or correlation_id.",
            hint="Leave these out of the options in task_routes of celeryconfig.py.",
            code="message_format",
        )
    return properties[:at], unpack_from(">I", properties, at)[0], parts
