"""Commands to a running listener: their queue, and the record of their results.

They are in the Redis with the checkpoint. Only those who can write there can give commands. The listener
that reads takes them one after the other, within about half a second; a standby takes none. A command stays at the
head of the list until it is done. A listener that takes over does it again, so commands are idempotent.
"""

from __future__ import annotations

from collections.abc import Sequence

from cdc_tasks.errors import CDCError
from cdc_tasks.record import Command, Outcome, record_commands
from listener.publish.redis.connection import RedisConnection

__all__ = ["Command", "CommandQueue", "CommandRefusedError", "Outcome"]


class CommandRefusedError(CDCError):
    """The listener refuses a command."""


class CommandQueue:
    """The commands to the listener of one CDC_NAME, and their outcomes."""

    def __init__(self, redis: RedisConnection, name: str) -> None:
        """`redis` has the checkpoint; `name` is CDC_NAME."""
        self._redis = redis
        prefix = redis.prefixed(f"cdc:{name}")
        self._waiting = f"{prefix}:commands"
        self._record = f"{prefix}:record"
        self._taken: tuple[str, bytes] | None = None  # the id of the next command, and its stored text

    def give(self, command: Command) -> None:
        """Add a command to the queue."""
        self._redis.ask([("RPUSH", self._waiting, command.to_json())])

    def withdraw(self, command: Command) -> bool:
        """Withdraw a command that has not been done; return whether it was still queued."""
        (removed,) = self._redis.ask([("LREM", self._waiting, "0", command.to_json())])
        return bool(removed)

    def next(self) -> Command | None:
        """Return the next command; remove unreadable ones."""
        (texts,) = self._redis.ask([("LRANGE", self._waiting, "0", "0")])
        if not texts:
            return None
        try:
            command = Command.parse(texts[0])
        except (TypeError, ValueError) as error:
            unreadable = Command(verb="?", who="?")
            self._end(
                texts[0], Outcome.refusal(unreadable, CDCError(f"The command cannot be read: {error}."))
            )
            return None
        self._taken = command.id, texts[0]
        return command

    def done(self, command: Command, result: str) -> None:
        """Record that it was done."""
        self._end(self._as_it_waits(command), Outcome.done(command, result))

    def begun(self, command: Command) -> str:
        """Return the command's text in the queue. It stays there: a later process ends it with `finished`."""
        return self._as_it_waits(command).decode()

    def finished(self, text: str, result: str) -> None:
        """Record that the command with this text, which `begun` has returned, was done."""
        self._end(text.encode(), Outcome.done(Command.parse(text.encode()), result))

    def refused(self, command: Command, error: CDCError) -> None:
        """Record that it was not done, and why."""
        self._end(self._as_it_waits(command), Outcome.refusal(command, error))

    def note(self, command: Command, result: str | CDCError) -> None:
        """Record an action done without the listener, or why it was not possible."""
        outcome = (
            Outcome.refusal(command, result)
            if isinstance(result, CDCError)
            else Outcome.done(command, result)
        )
        self._redis.ask(record_commands(self._record, outcome))

    def outcome(self, command: Command) -> Outcome | None:
        """Return the outcome of a command, None if there is none yet."""
        return next((each for each in self.record() if each.command.id == command.id), None)

    def record(self, count: int = 1_000) -> Sequence[Outcome]:
        """Return the last outcomes, the newest first."""
        (texts,) = self._redis.ask([("LRANGE", self._record, "0", str(count - 1))])
        return [Outcome.parse(text) for text in texts]

    def close(self) -> None:
        self._redis.close()

    def _as_it_waits(self, command: Command) -> bytes:
        """Return the command's text in the list, which another program may have formatted differently."""
        taken, self._taken = self._taken, None
        return taken[1] if taken is not None and taken[0] == command.id else command.to_json()

    def _end(self, text: bytes, outcome: Outcome) -> None:
        self._redis.ask(
            [
                ("MULTI",),
                ("LREM", self._waiting, "1", text),
                *record_commands(self._record, outcome),
                ("EXEC",),
            ]
        )
