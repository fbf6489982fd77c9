"""The checkpoint in Redis, and the data written with it: one atomic step, done exactly once.

The step is a MULTI on a connection that WATCHes the checkpoint, and it leaves its own mark there. If the reply is
lost, the mark shows whether the step was done. A write of an earlier connection that is in transit does no harm:
either it moves the checkpoint and our next step fails, or our step moves it and the late write fails. This also
stops a second listener with our name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain, count
from typing import Any, Final, NamedTuple
from uuid import uuid4

import structlog
from redis.exceptions import ResponseError

from listener.core.publisher import BrokerAwayError, BrokerError, CheckpointMovedError
from listener.core.retry import Retry
from listener.core.source import Saved
from listener.publish.redis.connection import Command, RedisConnection

__all__ = ["Checkpoint"]

log = structlog.get_logger()

# Sent after a step on its connection. The reply is the number of disks or replicas that have it.
_DURABLE: Final[dict[str, tuple[str, ...]]] = {
    "memory": (),
    "fsync": ("WAITAOF", "1", "0"),
    "replicated": ("WAIT", "1"),
}
_HINT: Final = {
    "fsync": "It needs Redis 7.2 or any Valkey with its append-only file: redis-cli CONFIG SET appendonly yes",
    "replicated": "It needs the address of a master in CELERY_BROKER_URL, and a replica.",
}
_MISSING: Final = {
    "fsync": "The batch is not on the broker's disk yet.",
    "replicated": "No replica of the broker has the batch yet.",
}
_LONGEST_WAIT: Final = 1.0  # seconds for the disk or the replica; then the listener queries again


class _Found(NamedTuple):
    """The contents of the checkpoint."""

    position: str | None
    source: str | None
    mark: str | None  # of the step that wrote it


class _Step(NamedTuple):
    position: str
    commands: Callable[[], Iterable[Command]]
    move: Command  # writes the checkpoint
    mark: str
    queries: Sequence[Command]  # sent right after it


class Checkpoint:
    """A position that moves together with writes to Redis; waits while the server is unavailable."""

    def __init__(
        self, redis: RedisConnection, retry: Retry, *, name: str, durability: str = "memory"
    ) -> None:
        """`name` is CDC_NAME; `durability` is memory, fsync or replicated."""
        self._redis = redis
        self._retry = retry
        self._durability = durability
        self._run = f"{uuid4().hex[:12]}:"
        self._marks = (f"{self._run}{number}" for number in count(1))
        self._known = _Found(None, None, None)
        self._is_confirmed = False  # with the required durability; data just read may be in memory only
        self._step: _Step | None = None  # in flight
        self._sent: Callable[[], Iterable[Command]] | None = (
            None  # what was sent with it on the open connection
        )
        self._source: str | None = None
        self.key = redis.prefixed(f"cdc:{name}:checkpoint")

    @property
    def confirmed(self) -> str | None:
        """The last position known to be in Redis, with the required durability."""
        return self._known.position if self._is_confirmed else None

    def read(self) -> Saved | None:
        """Return position and notes without changing anything; a step in flight may not be included yet."""
        return self._retry.call(self._read)

    def _read(self) -> Saved | None:
        self._redis.close()
        try:
            position = self._open().position
            (notes,) = self._redis.ask([("HGET", self.key, "notes")])
        finally:
            self._redis.close()  # its WATCH began only now, not with our state: the next step reads again
        return None if position is None else Saved(position, None if notes is None else notes.decode())

    def attach(self, source: str) -> str | None:
        """Drop the step in flight, watch the checkpoint from now on, and return its position.

        Raise BrokerError if it belongs to another database.
        """
        self._source = source
        self._step = self._sent = None
        self._redis.close()
        self._known = self._retry.call(self._open)
        self._is_confirmed = not self._durable()
        return self._known.position

    def start(
        self,
        commands: Callable[[], Iterable[Command]],
        position: str,
        as_of: datetime | None = None,
        *,
        queries: Sequence[Command] = (),
        notes: str | None = None,
    ) -> None:
        """Send the commands and the checkpoint's move to `position` as one atomic step, after the previous one.

        The commands are created again for each attempt, while they are being sent. `queries` follow the step.
        Does not wait: `flush` waits for an unavailable server. Raises what `flush` raises.
        """
        mark = next(self._marks)
        step = _Step(position, commands, self._store(position, mark, as_of, notes), mark, queries)
        with suppress(BrokerAwayError):
            self._send(step)
        self._step = step

    def flush(self) -> list[Any]:
        """Wait for the step in flight; return the replies to its queries.

        Raise CheckpointMovedError if the checkpoint is not the one we wrote; then nothing was written.
        """
        step, self._step = self._step, None
        if step is None:
            return []
        answers = self._retry.call(lambda: self._attempt(step))
        self._known = _Found(step.position, self._source, step.mark)
        self._is_confirmed = True
        return answers

    def look(self) -> None:
        """Raise CheckpointMovedError if the checkpoint is not the one we wrote; write nothing."""
        found = _found(self._retry.call(lambda: self.ask(self._reading()))[0])
        if found.mark != self._known.mark:
            raise self._moved(found)

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Return the replies to read-only commands. Raise BrokerAwayError, BrokerError."""
        if not self._redis.is_open:
            found = self._open()  # the next step relies on the watch
            if found.mark != self._known.mark:
                raise self._moved(found)
        return self._redis.ask(commands)

    def _attempt(self, step: _Step) -> list[Any]:
        try:
            return self._do(step)
        except BaseException:
            self._redis.close()  # in any case: the next attempt starts from the checkpoint in Redis
            raise

    def _do(self, step: _Step) -> list[Any]:
        if self._sent is None or not self._redis.is_open:
            self._send(step)
        answers, commands = self._redis.finish(), self._sent or _nothing
        self._sent = None
        behind = len(self._behind(step))
        done, *rest = answers[-behind - 1 :]
        if isinstance(done, ResponseError):
            raise self._redis.refusal(next(each for each in answers if isinstance(each, ResponseError)))
        found = _found(rest[-1])
        if found.mark != step.mark:
            raise self._moved(found)
        if done is None:
            raise BrokerAwayError("The step of an earlier connection arrived late.")
        if any(isinstance(answer, ResponseError) for answer in done):
            raise self._taken_back(done, [*commands(), step.move])
        durable = len(self._durable())
        self._check_durable(rest[:durable])
        return rest[durable:-2]

    def _send(self, step: _Step) -> None:
        self._sent, commands = None, step.commands
        if not self._redis.is_open:
            found = self._open()
            if found.mark == step.mark:  # only the reply was lost
                commands = _nothing
            elif found.mark != self._known.mark:
                raise self._moved(found)
        self._redis.start(chain([("MULTI",)], commands(), [step.move, ("EXEC",)], self._behind(step)))
        self._sent = commands

    def _behind(self, step: _Step) -> list[Command]:
        """Return what is sent right after a step."""
        return [*self._durable(), *step.queries, *self._watching()]

    def _durable(self) -> list[Command]:
        words = _DURABLE[self._durability]
        wait = min(_LONGEST_WAIT, self._redis.timeout / 2)
        return [(*words, str(int(wait * 1000)))] if words else []

    def _check_durable(self, answers: list[Any], *, at_start: bool = False) -> None:
        for answer in answers:
            if isinstance(answer, ResponseError):
                if "replica instances" in str(answer):
                    raise BrokerAwayError(f"Redis is a replica now: {answer}")
                raise BrokerError(
                    f"This Redis does not support CDC_DURABILITY={self._durability}: {answer}.",
                    hint=_HINT[self._durability],
                    code="durability",
                )
            count = answer[0] if isinstance(answer, list) else answer
            if count < 1 and not at_start:
                raise BrokerAwayError(_MISSING[self._durability])

    def _taken_back(self, done: list[Any], commands: Sequence[Command]) -> BrokerError:
        """Move the checkpoint back: one of the commands failed, but Redis ran the others."""
        answer, command = next(
            pair for pair in zip(done, commands, strict=True) if isinstance(pair[0], ResponseError)
        )
        key = command[3] if command[0] in {"EVAL", "EVALSHA"} else command[1]
        position, _, mark = self._known
        back = self._store(position or "", mark or "")
        self._retry.call(lambda: self._redis.send([back]))  # otherwise the step would look complete
        return BrokerError(
            f"Redis did not accept all of a batch, so the listener did not acknowledge it: {command[0]!r} of "
            f"{key!r}: {answer}",
            hint=f"See what that key is, and rename it: redis-cli TYPE {key!r}",
            code="partial_batch",
        )

    def _store(
        self, position: str, mark: str, as_of: datetime | None = None, notes: str | None = None
    ) -> Command:
        now = datetime.now(UTC)
        fields = {
            "position": position,
            "source": self._source or "",
            "mark": mark,
            "at": now.isoformat(),
            "as_of": (as_of or now).isoformat(),
            **({} if notes is None else {"notes": notes}),
        }
        return "HSET", self.key, *chain.from_iterable(fields.items())

    def _open(self) -> _Found:
        """Connect, watch the checkpoint, and return it."""
        self._redis.open()
        answers = self._redis.send([*self._durable(), *self._watching()])
        self._check_durable(answers[:-2], at_start=True)
        for answer in answers:
            if isinstance(answer, ResponseError):
                raise self._redis.refusal(answer)
        found = _found(answers[-1])
        if found.source and self._source and found.source != self._source:
            raise BrokerError(
                f"The checkpoint {self.key} belongs to another database: {found.source}, not {self._source}.",
                hint="Give each database its own CDC_NAME. If this database replaces the other: "
                f"redis-cli DEL {self.key}",
                code="checkpoint_of_other_database",
            )
        return found

    def _watching(self) -> list[Command]:
        return [("WATCH", self.key), *self._reading()]

    def _reading(self) -> list[Command]:
        return [("HMGET", self.key, "position", "source", "mark")]

    def _moved(self, found: _Found) -> CheckpointMovedError:
        """Return an error that shows whether Redis lost data, or another listener has our name."""
        lost, left = None, self._known.position
        if found.mark is None:
            lost = "The checkpoint is gone"
        elif found.mark.startswith(self._run):
            lost = f"The checkpoint went back to {found.position}"
        if lost is None:
            return CheckpointMovedError(
                f"The checkpoint is {found.position}; this listener left it at {left}."
            )
        reason = (
            f"{lost}; this listener left it at {left}. Redis has lost its data, or has an old copy. Tasks that were "
            "waiting are lost with it. The listener publishes again what the source still has."
        )
        log.error("broker_lost_data", reason=reason)
        return CheckpointMovedError(reason, code="broker_lost_data")


def _nothing() -> Iterable[Command]:
    return ()


def _found(values: list[bytes | None]) -> _Found:
    return _Found(*(value.decode() if value else None for value in values))
