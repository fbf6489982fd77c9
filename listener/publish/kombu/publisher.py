"""Tasks to RabbitMQ and to any other broker that kombu supports: at least once, with equal task ids.

The broker gets a batch first, then the checkpoint goes to CACHE_URL's Redis. After a crash between the two the
listener sends the batch again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from celery import Celery

from cdc_tasks.routing.router import Call, Parked
from listener.core.publisher import BrokerError, MessageTooLargeError
from listener.core.retry import Retry
from listener.core.source import Saved
from listener.core.wakeup import Wakeup
from listener.publish.batching import batch_together
from listener.publish.checkpoint import Checkpoint
from listener.publish.kombu.sender import KombuSender, Message, Render, message_template
from listener.publish.parked import log_parked, parked_key, store_parked
from listener.publish.queue_limit import Load, QueueLimit, pause_key
from listener.publish.redis.connection import RedisConnection

__all__ = ["KombuPublisher"]

_OVERHEAD = 1_000  # bytes in a message's body beside the arguments
_LOOK_EVERY = 0.5  # seconds between two looks at a queue that is too long


class KombuPublisher:
    """Publishes to the broker of Celery's settings through kombu; fulfils `listener.core.publisher.Publisher`."""

    def __init__(self, app: Celery, cache_url: str, *, name: str, max_queue: int | None = None) -> None:
        """Keep the checkpoint under `name`, which is CDC_NAME, in the Redis of `cache_url`."""
        self._app = app
        self._wakeup = Wakeup()  # of both waits, for the broker and for the cache
        self._retry = Retry("broker", wakeup=self._wakeup)
        self._sender = KombuSender(app, self._retry)
        self._redis = RedisConnection.of_cache(cache_url)
        self._checkpoint = Checkpoint(self._redis, Retry("cache", wakeup=self._wakeup), name=name)
        self._parked_key = parked_key(f"cdc:{name}")
        self._limit = QueueLimit(
            max_queue, self._redis, pause_key(f"cdc:{name}"), self._retry, look_every=_LOOK_EVERY
        )
        self._templates: dict[tuple[Any, ...], Render] = {}

    def read_checkpoint(self) -> Saved | None:
        """Return the last position whose tasks the broker holds; see `Publisher.read_checkpoint`."""
        return self._checkpoint.read()

    def attach(self, source: str) -> str | None:
        """Get ready to publish; see `Publisher.attach`."""
        return self._checkpoint.attach(source)

    def publish(
        self,
        fired: Iterable[Call | Parked],
        *,
        checkpoint: str,
        as_of: datetime | None = None,
        pipelined: bool = False,  # noqa: ARG002 - it returns when the broker has confirmed the batch
        notes: str | None = None,
    ) -> str | None:
        """Make the broker hold these tasks, and then Redis the parked changes and the checkpoint."""
        limit = self._sender.limit
        tasks, parked = batch_together(fired, max_bytes=None if limit is None else limit - _OVERHEAD)
        if tasks:
            parked += self._send(tasks)
        else:
            self._sender.keep_alive()
        if tasks or parked or checkpoint != self._checkpoint.confirmed or notes is not None:
            self._checkpoint.start(
                lambda: store_parked(self._parked_key, parked, max_bytes=self._redis.max_bytes),
                checkpoint,
                as_of,
                notes=notes,
            )
            self._checkpoint.flush()
        log_parked(parked)
        if tasks and self._limit.max_queue is not None:
            self._limit.wait_for_room(self._retry.call(self._load), self._load)
        return self._checkpoint.confirmed

    def _load(self) -> Load:
        return Load(self._sender.longest_queue(), self._limit.max_queue)

    def _send(self, tasks: Sequence[Call]) -> list[Parked]:
        """Make the broker hold the tasks; return those whose messages it will never take."""
        messages = {task.id: self._message(task) for task in tasks}
        parked: list[Parked] = []
        while messages:
            try:
                self._retry.call(lambda: self._sender.send(messages))
            except MessageTooLargeError as error:
                too_large = [each for each in tasks if len(_body(messages, each)) > error.limit]
                if not too_large:
                    raise BrokerError(error.message, hint=error.hint, code=error.code) from error
                parked += [Parked(*each[:2], error, each.arguments, each.kwargs) for each in too_large]
                for each in too_large:
                    messages.pop(each.id, None)
        return parked

    def flush(self) -> str | None:
        """Return the confirmed position: no batch is ever in flight."""
        return self._checkpoint.confirmed

    def stop(self) -> None:
        """Make a call that waits raise StoppedError soon."""
        self._wakeup.set()

    def close(self) -> None:
        """Release broker and Redis."""
        self._sender.close()
        self._redis.close()

    def _message(self, task: Call) -> Message:
        route, change = task.route, task.change
        render = self._templates.get(route.sent_as)
        if render is None:
            render = self._templates[route.sent_as] = message_template(self._app, route)
        return render(task.arguments, task.kwargs, task.id, change.kind, change.position)


def _body(messages: Mapping[str, Message], task: Call) -> bytes:
    message = messages.get(task.id)
    return b"" if message is None else message.body
