"""Tasks into Redis or Valkey: a batch and its checkpoint are one atomic write, so every change is there exactly once.

The write is a MULTI on a connection that WATCHes the checkpoint. An answer that is lost leaves it unknown
whether the batch is in: the checkpoint, read back, tells. A write of a former connection that is still under
way cannot slip in afterwards: either it moves the checkpoint and our next write fails, or ours does and it
fails. The same holds off a second listener with our name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from celery import Celery
from redis.exceptions import ExecAbortError, RedisError, ResponseError

from listener.envelope import Envelope, Envelopes
from listener.parked import parked_key, store_parked
from listener.patience import Patience
from listener.publisher import BrokerError, CheckpointMoved, NotDurable, Task, group
from listener.redis_connection import RedisConnection
from listener.router import Call, Parked

__all__ = ["RedisPublisher"]

log = structlog.get_logger()

Command = Sequence[str | bytes]

# What follows the write on its connection, and answers with how many disks or replicas have it.
_DURABLE: Final[dict[str, tuple[Command, ...]]] = {
    "memory": (),
    "fsync": (("WAITAOF", "1", "0", "1000"),),
    "replicated": (("WAIT", "1", "1000"),),
}


class RedisPublisher:
    """Publishes to the Redis that Celery's own broker settings describe."""

    def __init__(self, app: Celery, *, name: str, durability: str = "memory") -> None:
        """`name` is CDC_NAME; `durability` is memory, fsync or replicated."""
        self._redis = RedisConnection(app)
        self._envelopes = Envelopes(app)
        self._made: dict[tuple[str, tuple[str, str, str]], Envelope] = {}
        self._patience = Patience("broker")
        self._prefix = f"cdc:{name}"
        self._durable = _DURABLE[durability]
        self._position: str | None = None  # the checkpoint as we know it
        self._source: str | None = None

    def checkpoint(self, source: str | None = None) -> str | None:
        """Return the last position whose tasks the broker holds; see `Publisher.checkpoint`."""
        self._source = source
        self._redis.close()
        self._position = self._patience.until_done(self._watch)
        return self._position

    def publish(self, fired: Iterable[Call | Parked], *, checkpoint: str) -> None:
        """Make the broker hold these tasks, the parked changes, and the checkpoint, in one atomic step."""
        tasks, parked = group(fired)
        if not tasks and not parked and checkpoint == self._position:
            return
        commands = self._patience.until_done(lambda: self._commands(tasks, parked, checkpoint))
        self._patience.until_done(lambda: self._commit(commands, checkpoint))
        self._position = checkpoint
        for each in parked:
            log.error("parked", task=each.route.task, position=each.change.position, error=repr(each.error))

    def stop(self) -> None:
        """Make a waiting `publish` raise Stopped soon."""
        self._patience.stop()

    def close(self) -> None:
        """Let go of the broker."""
        self._redis.close()

    @property
    def _checkpoint_key(self) -> str:
        return self._redis.prefixed(f"{self._prefix}:checkpoint")

    def _commands(self, tasks: list[Task], parked: list[Parked], checkpoint: str) -> list[Command]:
        """Return what the atomic step consists of; the checkpoint comes last."""
        queues: dict[str, list[bytes]] = defaultdict(list)
        made = self._made
        for route, change, arguments in tasks:
            kind = change.kind
            envelope = made.get((route.key, kind))
            if envelope is None:
                envelope = made[route.key, kind] = self._envelopes.make(route, kind)
            change_id, position = change.stamp
            message = envelope.seal(arguments, b"%b-%b" % (change_id, route.key_bytes), position)
            for key in envelope.keys:
                queues[key].append(message)
        pushes: list[Command] = [("LPUSH", key, *messages) for key, messages in queues.items()]
        stores = store_parked(parked_key(self._redis.prefixed(self._prefix)), parked)
        return [*pushes, *stores, self._store_checkpoint(checkpoint)]

    def _store_checkpoint(self, position: str) -> Command:
        now = datetime.now(UTC).isoformat()
        return "HSET", self._checkpoint_key, "position", position, "source", self._source or "", "at", now

    def _commit(self, commands: list[Command], checkpoint: str) -> None:
        if not self._redis.is_open:
            found = self._watch()
            if found == checkpoint:  # the answer was lost, and not the write
                commands = commands[-1:]
            elif found != self._position:
                raise self._moved(found)
        answers = self._redis.send([("MULTI",), *commands, ("EXEC",), *self._durable, *self._watching()])
        done = answers[len(commands) + 1]
        if done is None:
            if _text(answers[-1][0]) != checkpoint:
                raise self._moved(_text(answers[-1][0]))
        elif isinstance(done, ExecAbortError):
            raise next(answer for answer in answers if isinstance(answer, ResponseError))
        else:
            self._check_each(done, commands)
        if self._durable:
            self._check_durable(answers[len(commands) + 2])

    def _check_each(self, done: list[Any], commands: list[Command]) -> None:
        """Take the checkpoint back where one of the commands failed although the others were run."""
        for answer, command in zip(done, commands, strict=True):
            if isinstance(answer, RedisError):
                self._redis.send([self._store_checkpoint(self._position or "")])
                raise BrokerError(
                    f"Redis refused to add to {command[1]!r}: {answer}. The batch was not acknowledged.",
                    hint=f"See what the key is (TYPE {command[1]!r}), and rename or remove it.",
                )

    def _check_durable(self, answer: Any) -> None:
        if isinstance(answer, ResponseError):
            raise BrokerError(
                f"CDC_DURABILITY cannot be had from this Redis: {answer}.",
                hint="fsync needs Redis 7.2 or Valkey, and appendonly yes; replicated needs a replica.",
            )
        count = answer[0] if isinstance(answer, list) else answer
        if count < 1:
            self._redis.close()  # the next attempt reads back that the batch is in, and waits again
            raise NotDurable

    def _watch(self) -> str | None:
        """Watch the checkpoint on a fresh connection, and return it."""
        position, source = (_text(value) for value in self._redis.ask(self._watching())[-1])
        if source and self._source and source != self._source:
            raise BrokerError(
                f"The checkpoint {self._checkpoint_key} is that of another database: {source}, not {self._source}.",
                hint="Give each database a CDC_NAME of its own. If this one replaces it: "
                f"redis-cli DEL {self._checkpoint_key}",
            )
        return position or None

    def _watching(self) -> list[Command]:
        return [("WATCH", self._checkpoint_key), ("HMGET", self._checkpoint_key, "position", "source")]

    def _moved(self, found: str | None) -> CheckpointMoved:
        return CheckpointMoved(f"The broker's checkpoint is {found}; we left it at {self._position}.")


def _text(value: bytes | str | None) -> str | None:
    return value.decode() if isinstance(value, bytes) else value
