"""Tasks into Redis or Valkey: a batch and its checkpoint are one atomic step, so every change is there exactly once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import structlog
from celery import Celery

from listener.checkpoint import Checkpoint
from listener.envelope import Envelope, Envelopes
from listener.gather import Task, group
from listener.parked import parked_key, store_parked
from listener.patience import Patience
from listener.redis_connection import Command, RedisConnection
from listener.router import Call, Parked, Route

__all__ = ["RedisPublisher"]

log = structlog.get_logger()


class RedisPublisher:
    """Publishes to the Redis that Celery's own broker settings describe."""

    def __init__(self, app: Celery, *, name: str, durability: str = "memory") -> None:
        """`name` is CDC_NAME; `durability` is memory, fsync or replicated."""
        self._redis = RedisConnection.of_broker(app)
        self._patience = Patience("broker")
        self._checkpoint = Checkpoint(self._redis, self._patience, name=name, durability=durability)
        self._parked_key = parked_key(self._redis.prefixed(f"cdc:{name}"))
        self._envelopes = Envelopes(app)
        self._made: dict[tuple[str, tuple[str, str, str]], Envelope] = {}

    def checkpoint(self, source: str | None = None) -> str | None:
        """Return the last position whose tasks the broker holds; see `Publisher.checkpoint`."""
        self._made.clear()  # a broker that was emptied does not know the queues any more
        return self._checkpoint.read(source)

    def publish(self, fired: Iterable[Call | Parked], *, checkpoint: str) -> None:
        """Make the broker hold these tasks, the parked changes, and the checkpoint, in one atomic step."""
        tasks, parked = group(fired)
        if not tasks and not parked and checkpoint == self._checkpoint.position:
            return
        pushes = self._patience.until_done(lambda: self._pushes(tasks))
        self._checkpoint.write([*pushes, *store_parked(self._parked_key, parked)], checkpoint)
        for each in parked:
            log.error("parked", task=each.route.task, position=each.change.position, error=repr(each.error))

    def stop(self) -> None:
        """Make a waiting `publish` raise Stopped soon."""
        self._patience.stop()

    def close(self) -> None:
        """Let go of the broker."""
        self._redis.close()

    def _pushes(self, tasks: list[Task]) -> list[Command]:
        """Return the commands that put the tasks' messages where Celery would."""
        queues: dict[str, list[bytes]] = defaultdict(list)
        expiries: dict[Command, None] = {}
        for route, change, arguments in tasks:
            envelope = self._envelope(route, change.kind)
            change_id, position = change.stamp
            message = envelope.seal(arguments, b"%b-%b" % (change_id, route.key_bytes), position)
            for key in envelope.keys:
                queues[key].append(message)
            if envelope.expiries:
                expiries.update(dict.fromkeys(envelope.expiries))
        pushes: list[Command] = [("LPUSH", key, *messages) for key, messages in queues.items()]
        return [*pushes, *expiries]

    def _envelope(self, route: Route, kind: tuple[str, str, str]) -> Envelope:
        envelope = self._made.get((route.key, kind))
        if envelope is None:
            envelope = self._made[route.key, kind] = self._envelopes.make(route, kind)
        return envelope
