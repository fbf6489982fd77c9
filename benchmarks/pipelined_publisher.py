"""Publish one message again and again to a quorum queue of RabbitMQ, and print how many it has confirmed.

It does nothing else: the frames are made once, and written a hundred at a time, with up to ten thousand in transit.
This is the speed at which RabbitMQ accepts messages from one channel.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any, Final

import amqp
from amqp import spec
from amqp.method_framing import frame_writer
from amqp.serialization import dumps

_QUEUE: Final = "pipelined"
_AT_ONCE: Final = 100
_WINDOW: Final = 10_000
_HEADERS: Final = {f"header-{number}": "x" * 28 for number in range(14)}  # about as many bytes as Celery's
_BODY: Final = b"x" * 450  # about as many as a ticket's


def publish(port: int) -> None:
    """Publish until it is killed."""
    with amqp.Connection(host=f"127.0.0.1:{port}") as connection, connection.channel() as channel:  # type: ignore[attr-defined]  # the stubs lack it
        channel.queue_delete(_QUEUE)
        channel.queue_declare(_QUEUE, durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
        _publish(connection, channel, _frames(channel.channel_id) * _AT_ONCE)


def _publish(connection: Any, channel: Any, frames: bytes) -> None:
    sent = confirmed = 0

    def note(number: int, multiple: bool) -> None:  # noqa: FBT001  # py-amqp's signature
        nonlocal confirmed
        confirmed = number if multiple else confirmed + 1

    channel.confirm_select()
    channel.events["basic_ack"].add(note)
    while True:
        has_room = sent - confirmed < _WINDOW
        if has_room:
            connection.transport.write(frames)
            sent += _AT_ONCE
        before = confirmed
        _read(connection, timeout=0 if has_room else 1)
        if confirmed != before:
            sys.stdout.write(f"{confirmed}\n")
            sys.stdout.flush()


def _read(connection: Any, *, timeout: float) -> None:
    try:
        while True:
            connection.drain_events(timeout=timeout)
            timeout = 0
    except TimeoutError:
        return


def _frames(channel_id: int) -> bytes:
    written: list[bytes] = []
    transport = SimpleNamespace(write=lambda data: written.append(bytes(data)))
    message = amqp.Message(  # type: ignore[attr-defined]  # the stubs lack it
        _BODY,
        application_headers=_HEADERS,
        content_type="application/json",
        content_encoding="utf-8",
        correlation_id="x" * 40,
        delivery_mode=2,
    )
    write = frame_writer(SimpleNamespace(frame_max=131_072, bytes_sent=0), transport)
    write(1, channel_id, spec.Basic.Publish, dumps("Bssbb", (0, "", _QUEUE, True, False)), message)
    return b"".join(written)


if __name__ == "__main__":
    publish(int(sys.argv[1]))
