"""The checkpoint in Redis, and what is written with it: one atomic step, done exactly once.

The step is a MULTI on a connection that WATCHes the checkpoint, and it leaves its own mark there. An answer
that is lost leaves it unknown whether the step was done: the mark, read back, tells. A write of a former
connection that is still under way cannot slip in afterwards: either it moves the checkpoint and our next step
fails, or ours does and it fails. The same holds off a second listener with our name.
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
from listener.core.retry import Patience
from listener.publish.redis.connection import Command, RedisConnection

__all__ = ["Checkpoint"]

log = structlog.get_logger()

# What follows a step on its connection, and answers with how many disks or replicas have it.
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
_LONGEST_WAIT: Final = 1.0  # seconds for the disk or the replica; then it is asked again


class _Found(NamedTuple):
    """What the checkpoint says."""

    position: str | None
    source: str | None
    mark: str | None  # of the step that wrote it


class _Step(NamedTuple):
    position: str
    commands: Callable[[], Iterable[Command]]
    move: Command  # writes the checkpoint
    mark: str
    asking: Sequence[Command]  # asked right behind it


class Checkpoint:
    """A position that moves together with what is written to Redis; waits out a server that is away."""

    def __init__(
        self, redis: RedisConnection, patience: Patience, *, name: str, durability: str = "memory"
    ) -> None:
        """`name` is CDC_NAME; `durability` is memory, fsync or replicated."""
        self._redis = redis
        self._patience = patience
        self._durability = durability
        self._run = f"{uuid4().hex[:12]}:"
        self._marks = (f"{self._run}{number}" for number in count(1))
        self._known = _Found(None, None, None)
        self._is_held = False  # as durably as was asked for; what was read may be in one memory alone
        self._step: _Step | None = None  # started, and not settled yet
        self._sent: Callable[[], Iterable[Command]] | None = None  # what went with it on the open connection
        self._source: str | None = None
        self.notes: str | None = None  # what the source noted, as it was when the position was read
        self.key = redis.prefixed(f"cdc:{name}:checkpoint")

    @property
    def held(self) -> str | None:
        """The last position whose tasks the broker holds, as durably as was asked for, and as far as we know."""
        return self._known.position if self._is_held else None

    def read(self, source: str | None) -> str | None:
        """Return the position; raises BrokerError where it is another database's."""
        self._source = source
        self._step = self._sent = None
        self._redis.close()
        self._known = self._patience.until_done(self._open)
        (notes,) = self._patience.until_done(lambda: self.ask([("HGET", self.key, "notes")]))
        self.notes = None if notes is None else notes.decode()
        self._is_held = not self._durable()
        return self._known.position

    def start(
        self,
        commands: Callable[[], Iterable[Command]],
        position: str,
        as_of: datetime | None = None,
        *,
        asking: Sequence[Command] = (),
        notes: str | None = None,
    ) -> None:
        """Send the commands and the checkpoint's move to `position` as one atomic step, the one before being settled.

        The commands are made anew for each attempt, while they are being sent. Waits for nothing: a server that
        is away is `settle`'s to wait for. Raises what `settle` raises.
        """
        mark = next(self._marks)
        step = _Step(position, commands, self._store(position, mark, as_of, notes), mark, asking)
        with suppress(BrokerAwayError):
            self._send(step)
        self._step = step

    def settle(self) -> list[Any]:
        """Return when the step that was started is done, with the answers to what it asked.

        Raises CheckpointMovedError where the checkpoint is not where we left it; then nothing was written.
        """
        step, self._step = self._step, None
        if step is None:
            return []
        answers = self._patience.until_done(lambda: self._attempt(step))
        self._known = _Found(step.position, self._source, step.mark)
        self._is_held = True
        return answers

    def look(self) -> None:
        """Raise CheckpointMovedError where the checkpoint is not where we left it, although there is nothing to write."""
        found = _found(self._patience.until_done(lambda: self.ask(self._reading()))[0])
        if found.mark != self._known.mark:
            raise self._moved(found)

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Return the answers to commands that change nothing; raises BrokerAwayError, BrokerError."""
        if not self._redis.is_open:
            found = self._open()  # whoever writes next relies on the watch
            if found.mark != self._known.mark:
                raise self._moved(found)
        return self._redis.ask(commands)

    def _attempt(self, step: _Step) -> list[Any]:
        try:
            return self._do(step)
        except BaseException:
            self._redis.close()  # whatever it was: the next attempt starts with what the checkpoint says
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
            raise BrokerAwayError("The step of a former connection came through late.")
        if any(isinstance(answer, ResponseError) for answer in done):
            raise self._taken_back(done, [*commands(), step.move])
        durable = len(self._durable())
        self._check_durable(rest[:durable])
        return rest[durable:-2]

    def _send(self, step: _Step) -> None:
        self._sent, commands = None, step.commands
        if not self._redis.is_open:
            found = self._open()
            if found.mark == step.mark:  # the answer was lost, and not the step
                commands = _nothing
            elif found.mark != self._known.mark:
                raise self._moved(found)
        self._redis.start(chain([("MULTI",)], commands(), [step.move, ("EXEC",)], self._behind(step)))
        self._sent = commands

    def _behind(self, step: _Step) -> list[Command]:
        """Return what is sent behind a step."""
        return [*self._durable(), *step.asking, *self._watching()]

    def _durable(self) -> list[Command]:
        words = _DURABLE[self._durability]
        wait = min(_LONGEST_WAIT, self._redis.timeout / 2)
        return [(*words, str(int(wait * 1000)))] if words else []

    def _check_durable(self, answers: list[Any], *, at_start: bool = False) -> None:
        for answer in answers:
            if isinstance(answer, ResponseError):
                if "replica instances" in str(answer):
                    raise BrokerAwayError(f"Redis is a replica at present: {answer}")
                raise BrokerError(
                    f"CDC_DURABILITY={self._durability} cannot be had from this Redis: {answer}.",
                    hint=_HINT[self._durability],
                )
            count = answer[0] if isinstance(answer, list) else answer
            if count < 1 and not at_start:
                raise BrokerAwayError(_MISSING[self._durability])

    def _taken_back(self, done: list[Any], commands: Sequence[Command]) -> BrokerError:
        """Take the checkpoint back: one of the commands failed, although the others were run."""
        answer, command = next(
            pair for pair in zip(done, commands, strict=True) if isinstance(pair[0], ResponseError)
        )
        position, _, mark = self._known
        back = self._store(position or "", mark or "")
        self._patience.until_done(lambda: self._redis.send([back]))  # else the step would pass for done
        return BrokerError(
            f"Redis did not take all of a batch, and it was not acknowledged: {command[0]!r} of "
            f"{command[1]!r}: {answer}",
            hint=f"See what that key is, and rename it: redis-cli TYPE {command[1]!r}",
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
        """Watch the checkpoint on a fresh connection, and return it."""
        self._redis.open()
        answers = self._redis.send([*self._durable(), *self._watching()])
        self._check_durable(answers[:-2], at_start=True)
        for answer in answers:
            if isinstance(answer, ResponseError):
                raise self._redis.refusal(answer)
        found = _found(answers[-1])
        if found.source and self._source and found.source != self._source:
            raise BrokerError(
                f"The checkpoint {self.key} is that of another database: {found.source}, not {self._source}.",
                hint="Give each database a CDC_NAME of its own. If this one replaces it: "
                f"redis-cli DEL {self.key}",
            )
        return found

    def _watching(self) -> list[Command]:
        return [("WATCH", self.key), *self._reading()]

    def _reading(self) -> list[Command]:
        return [("HMGET", self.key, "position", "source", "mark")]

    def _moved(self, found: _Found) -> CheckpointMovedError:
        """Say whether Redis lost data, or another listener has our name."""
        lost, left = None, self._known.position
        if found.mark is None:
            lost = "The checkpoint is gone"
        elif found.mark.startswith(self._run):
            lost = f"The checkpoint went back to {found.position}"
        if lost is None:
            return CheckpointMovedError(f"The checkpoint is {found.position}; we left it at {left}.")
        reason = (
            f"{lost}; we left it at {left}. Redis has lost its data, or has an old copy of it, and with "
            "it the tasks that were waiting. What the source still has for us is published again."
        )
        log.error("broker_lost_data", reason=reason)
        return CheckpointMovedError(reason)


def _nothing() -> Iterable[Command]:
    return ()


def _found(values: list[bytes | None]) -> _Found:
    return _Found(*(value.decode() if value else None for value in values))
