"""The record of what people did: commands to a listener, and other commands, from the shell and the console.

It is a list of the last 1,000, newest first, in the Redis that has the checkpoint. It names who did it: the operating
system's user who runs a command, or the person who is logged in to the console.
"""

from __future__ import annotations

import getpass
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Self
from uuid import uuid4

from cdc_tasks.errors import CDCError
from cdc_tasks.words import counted

__all__ = ["Command", "Outcome", "about", "record_commands", "summed"]

_KEPT: Final = 1_000  # outcomes
_MOST_NAMED: Final = 20  # targets of one of them
_LONGEST_NAME: Final = 200  # characters
_MOST_PROBLEMS: Final = 5


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command that a person gave."""

    verb: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=lambda: uuid4().hex[:12])
    who: str = field(default_factory=lambda: f"{getpass.getuser()}@{socket.gethostname()}")
    at: str = field(default_factory=_now)

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Read what `to_json` wrote; raises ValueError, TypeError."""
        return cls(**json.loads(text))

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a command."""

    command: Command
    result: str  # in words
    done_at: str
    code: str | None = None  # why it was refused; None: it was done
    hint: str | None = None

    @classmethod
    def done(cls, command: Command, result: str) -> Self:
        """Return the outcome of a command that was done now."""
        return cls(command=command, result=result, done_at=_now())

    @classmethod
    def refusal(cls, command: Command, error: CDCError) -> Self:
        """Return the outcome of a command that was refused now."""
        return cls(command=command, result=error.message, done_at=_now(), code=error.code, hint=error.hint)

    @property
    def is_refused(self) -> bool:
        return self.code is not None

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Read what `to_json` wrote; raises LookupError, TypeError, ValueError."""
        fields = json.loads(text)
        return cls(command=Command(**fields.pop("command")), **fields)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()


def record_commands(key: str, outcome: Outcome) -> list[tuple[str | bytes, ...]]:
    """Return the Redis commands that write an outcome to the record at `key`."""
    return [("LPUSH", key, outcome.to_json()), ("LTRIM", key, "0", str(_KEPT - 1))]


def about(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the arguments of a command with these targets, shortened: a record's entry has a bounded size."""
    named = [name[:_LONGEST_NAME] for name in names[:_MOST_NAMED]]
    more = [f"and {len(names) - _MOST_NAMED} more"] if len(names) > _MOST_NAMED else []
    return {"about": [*named, *more]}


def summed(outcomes: Sequence[tuple[bool, str]], verb: str) -> str:
    """Return a summary of several results: the first errors, and how many succeeded (`sent again`)."""
    wrong = [result for went_well, result in outcomes if not went_well]
    good = len(outcomes) - len(wrong)
    if len(outcomes) == 1:
        result = outcomes[0][1]
        return f"{result[:1].upper()}{result[1:]}."
    more = [f"{len(wrong) - _MOST_PROBLEMS} more went wrong."] if len(wrong) > _MOST_PROBLEMS else []
    return " ".join([f"{counted(good, 'item')} {verb}.", *wrong[:_MOST_PROBLEMS], *more])
