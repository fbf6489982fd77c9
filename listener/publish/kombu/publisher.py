"""Tasks to RabbitMQ and to whatever else kombu speaks with: at least once, with equal task ids.

The broker has a batch first, the checkpoint in CACHE_URL's Redis follows: after a crash between the two the
batch is sent again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

import structlog
from celery import Celery

from cdc_tasks.routing.router import Call, Parked
from listener.core.publisher import BrokerError, MessageTooLargeError
from listener.core.retry import Patience
from listener.publish.batching import group
from listener.publish.checkpoint import Checkpoint
from listener.publish.kombu.sender import KombuSender, Message, Sealed, sealing
from listener.publish.parked import parked_key, say_parked, store_parked
from listener.publish.pause import PauseNote, pause_key
from listener.publish.redis.connection import RedisConnection

__all__ = ["KombuPublisher"]

log = structlog.get_logger()

_AROUND = 1_000  # bytes in a message's body beside the arguments
_LOOK_EVERY = 0.5  # seconds between two looks at a queue that is too long


class KombuPublisher:
    """Publishes to the broker of Celery's settings through kombu; fulfils `listener.core.publisher.Publisher`."""

    def __init__(self, app: Celery, cache_url: str, *, name: str, max_queue: int | None = None) -> None:
        """Keep the checkpoint under `name`, which is CDC_NAME, in the Redis of `cache_url`."""
        self._max_queue = max_queue
        self._app = app
        self._patience, cache_patience = self._patiences = Patience("broker"), Patience("cache")
        self._sender = KombuSender(app, self._patience)
        self._redis = RedisConnection.of_cache(cache_url)
        self._checkpoint = Checkpoint(self._redis, cache_patience, name=name)
        self._parked_key = parked_key(f"cdc:{name}")
        self._pause_key = pause_key(f"cdc:{name}")
        self._sealed: dict[tuple[str, str | None], Sealed] = {}

    def checkpoint(self, source: str | None = None) -> str | None:
        """Return the last position whose tasks the broker holds; see `Publisher.checkpoint`."""
        return self._checkpoint.read(source)

    @property
    def notes(self) -> str | None:
        return self._checkpoint.notes

    def publish(
        self,
        fired: Iterable[Call | Parked],
        *,
        checkpoint: str,
        as_of: datetime | None = None,
        ahead: bool = False,  # noqa: ARG002 - it has the broker's confirmation, and not before
        notes: str | None = None,
    ) -> str | None:
        """Make the broker hold these tasks, and then Redis the parked changes and the checkpoint."""
        limit = self._sender.limit
        tasks, parked = group(fired, most_arguments=None if limit is None else limit - _AROUND)
        if tasks:
            parked += self._send(tasks)
        else:
            self._sender.keep_alive()
        if tasks or parked or checkpoint != self._checkpoint.held or notes is not None:
            self._checkpoint.start(
                lambda: store_parked(self._parked_key, parked, longest=self._redis.longest),
                checkpoint,
                as_of,
                notes=notes,
            )
            self._checkpoint.settle()
        say_parked(parked)
        if tasks and self._max_queue is not None:
            self._wait_for_room(self._max_queue)
        return self._checkpoint.held

    def _send(self, tasks: Sequence[Call]) -> list[Parked]:
        """Make the broker hold the tasks; returns those whose messages it will never take."""
        messages = {task.id: self._message(task) for task in tasks}
        parked: list[Parked] = []
        while messages:
            try:
                self._patience.until_done(lambda: self._sender.send(messages))
            except MessageTooLargeError as error:
                too_large = [each for each in tasks if len(_body(messages, each)) > error.limit]
                if not too_large:
                    raise BrokerError(error.message, hint=error.hint) from error
                parked += [Parked(*each[:2], error, each.arguments) for each in too_large]
                for each in too_large:
                    messages.pop(each.id, None)
        return parked

    def settle(self) -> str | None:
        """Return the last position whose tasks the broker holds: nothing is published ahead."""
        return self._checkpoint.held

    def stop(self) -> None:
        """Make a waiting `publish` raise StoppedError soon."""
        for patience in self._patiences:
            patience.stop()

    def close(self) -> None:
        """Let go of broker and Redis."""
        self._sender.close()
        self._redis.close()

    def _wait_for_room(self, limit: int) -> None:
        """Pause while a queue is longer than CDC_MAX_QUEUE: what waits in the database's log waits on its disk."""
        length = self._patience.until_done(self._sender.longest_queue)
        if length <= limit:
            return
        log.warning("paused", longest_queue=length, cdc_max_queue=limit)
        note = PauseNote(self._redis, self._pause_key, limit)
        while length > limit:
            note.renew(length)
            self._patience.sleep(_LOOK_EVERY)
            length = self._patience.until_done(self._sender.longest_queue)
        note.remove()
        log.info("resumed")

    def _message(self, task: Call) -> Message:
        route, change = task.route, task.change
        seal = self._sealed.get((route.key, route.queue))
        if seal is None:
            seal = self._sealed[route.key, route.queue] = sealing(self._app, route)
        return seal(task.arguments, task.id, change.kind, change.position)


def _body(messages: Mapping[str, Message], task: Call) -> bytes:
    message = messages.get(task.id)
    return b"" if message is None else message.body
