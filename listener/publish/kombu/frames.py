"""A task's message as RabbitMQ reads it: kombu and py-amqp make the frames of one, and they become a template.

AMQP 0-9-1, 4.2: a message is a method frame (basic.publish), a content header frame with the properties, and the body
in frames of up to `frame_max` bytes. A frame is its type, channel and size (1, 2 and 4 bytes), its payload, and 0xCE.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import itemgetter
from struct import pack, unpack_from
from types import SimpleNamespace
from typing import Any, Final

from amqp import spec
from amqp.method_framing import frame_writer
from kombu import Producer

from cdc_tasks.routing.router import Call
from listener.publish.kombu.message import MessageTemplate
from listener.publish.task_message import ID, KIND, POSITION, EnvelopeError, Kind, shown_kind

__all__ = ["Frames", "Render"]

Render = Callable[[Call], bytes]  # all frames of the call's message

_HEADER, _BODY, _END = 2, 3, b"\xce"
_FRAME: Final = 8  # bytes of a frame beside its payload
_HAS_CONTENT_TYPE, _HAS_ENCODING, _HAS_HEADERS = 1 << 15, 1 << 14, 1 << 13  # the first flags, in this order
_SHOWN: Final = f"<{KIND} {POSITION}>".encode()
# A place with its length before it: a long string of the headers, or the short string correlation_id.
_PLACES: Final = {
    b"S" + pack(">I", len(_SHOWN)) + _SHOWN: ("shown", ">I"),
    b"S" + pack(">I", len(ID)) + ID.encode(): ("id", ">I"),
    pack("B", len(ID)) + ID.encode(): ("id", "B"),
}
_PLACE: Final = re.compile(b"(%b)" % b"|".join(map(re.escape, _PLACES)), re.DOTALL)


class Frames:
    """The frames of one route's messages on one channel."""

    def __init__(self, channel: Any, message: MessageTemplate, route_key: str) -> None:
        """Let kombu publish a message on the channel, and catch it. Raise EnvelopeError if it is not as expected."""
        self._message = message
        self._suffix = f"-{route_key}".encode()
        self._channel = channel.channel_id
        self._chunk = channel.connection.frame_max - _FRAME
        self._method, properties = _split(_caught(channel, message))
        self._start, self._table, self._parts = _parsed(properties)

    def of(self, kind: Kind) -> Render:
        """Return the function that makes the messages of this kind of change."""
        body_of, suffix, largest = self._message.body, self._suffix, self._chunk
        shown = f"<{shown_kind(kind)} ".encode()
        shapes: dict[tuple[int, int], tuple[bytes, Callable[[Any], Any]]] = {}

        def render(call: Call) -> bytes:
            change_id, position = call.change.stamp
            task_id, body = change_id + suffix, body_of(call.arguments)
            lengths = len(task_id), len(position)
            try:
                text, pick = shapes[lengths]
            except KeyError:
                text, pick = shapes[lengths] = self._shape(shown, *lengths)
            filled: bytes = text % (pack(">Q", len(body)), *pick((task_id, position)))
            if len(body) > largest:
                return filled + self._in_frames(body)
            return b"%b%b%b\xce" % (filled, pack(">BHI", _BODY, self._channel, len(body)), body)

        return render

    def _shape(
        self, shown: bytes, id_length: int, position_length: int
    ) -> tuple[bytes, Callable[[Any], Any]]:
        """Return method and header frame of messages whose id and position have these lengths, and what goes where.

        The first place is the body's length.
        """
        lengths = {"id": id_length, "shown": len(shown) + position_length + 1}
        texts = {"id": b"%b", "shown": shown.replace(b"%", b"%%") + b"%b>"}
        text, size, order = b"", 0, []
        for number, part in enumerate(self._parts):
            if number % 2:
                what, width = _PLACES[part]
                prefix = (b"S" if width == ">I" else b"") + pack(width, lengths[what])
                text += prefix.replace(b"%", b"%%") + texts[what]
                size += len(prefix) + lengths[what]
                order.append(0 if what == "id" else 1)
            else:
                text += part.replace(b"%", b"%%")
                size += len(part)
        in_table = size - len(b"".join(self._parts)) - (id_length - len(ID))  # correlation_id is behind it
        start = self._start + pack(">I", self._table + in_table)
        header = pack(">BHI", _HEADER, self._channel, 12 + len(start) + size) + pack(">HH", *_CONTENT)
        return b"%b%b%%b%b%b\xce" % (*map(_literal, (self._method, header, start)), text), itemgetter(*order)

    def _in_frames(self, body: bytes) -> bytes:
        """Return a large body in several frames."""
        parts = (body[at : at + self._chunk] for at in range(0, len(body), self._chunk))
        return b"".join(pack(">BHI", _BODY, self._channel, len(part)) + part + _END for part in parts)


_CONTENT: Final = (spec.Basic.CLASS_ID, 0)  # the class of the header frame, and its weight, which is not used


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
    """Return the method frame, and of the header frame what follows the body's length."""
    first = _FRAME + unpack_from(">I", frames, 3)[0]
    size = unpack_from(">I", frames, first + 3)[0]
    return frames[:first], frames[first + 7 + 12 : first + 7 + size]


def _parsed(properties: bytes) -> tuple[bytes, int, list[bytes]]:
    """Return what is before the headers' length, that length, and the rest: each second part is one of `_PLACES`."""
    flags, at = unpack_from(">H", properties)[0], 2
    for flag in (_HAS_CONTENT_TYPE, _HAS_ENCODING):
        at += 1 + properties[at] if flags & flag else 0
    parts = _PLACE.split(properties[at + 4 :])
    found = [_PLACES[part] for part in parts[1::2]]
    if not flags & _HAS_HEADERS or sorted(found) != sorted([*_PLACES.values(), ("id", ">I")]):
        raise EnvelopeError(
            "Celery made a message without a task's id, root_id, argsrepr or correlation_id.",
            hint="Leave these out of the options in task_routes of celeryconfig.py.",
            code="message_format",
        )
    return properties[:at], unpack_from(">I", properties, at)[0], parts
