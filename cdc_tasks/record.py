"""What people told a listener, and what they did beside it: one record for the listener, the console and the commands.

It is a list in the Redis that has the checkpoint, the newest first, of the last 1,000. It names who: the user of the
operating system who runs a command, the person whom the console has let in.
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
_MOST_NAMED: Final = 20  # things that one of them is about
_LONGEST_NAME: Final = 200  # characters
_MOST_PROBLEMS: Final = 5


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What a person told the listener, or did."""

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
    """What came of a command."""

    command: Command
    result: str  # in words
    done_at: str
    code: str | None = None  # why it was refused; None: it was done
    hint: str | None = None

    @classmethod
    def done(cls, command: Command, result: str) -> Self:
        """Return that it was done now."""
        return cls(command=command, result=result, done_at=_now())

    @classmethod
    def refusal(cls, command: Command, error: CDCError) -> Self:
        """Return that it was refused now."""
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
    """Return the commands to Redis that write an outcome to the record at `key`."""
    return [("LPUSH", key, outcome.to_json()), ("LTRIM", key, "0", str(_KEPT - 1))]


def about(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the arguments of a command that is about these: an entry of the record has a bounded size."""
    named = [name[:_LONGEST_NAME] for name in names[:_MOST_NAMED]]
    more = [f"and {len(names) - _MOST_NAMED} more"] if len(names) > _MOST_NAMED else []
    return {"about": [*named, *more]}


def summed(outcomes: Sequence[tuple[bool, str]], verb: str) -> str:
    """Return what became of several things: the first that went wrong, and how many went well (`sent again`)."""
    wrong = [told for went_well, told in outcomes if not went_well]
    good = len(outcomes) - len(wrong)
    if len(outcomes) == 1:
        told = outcomes[0][1]
        return f"{told[:1].upper()}{told[1:]}."
    more = [f"{len(wrong) - _MOST_PROBLEMS} more went wrong."] if len(wrong) > _MOST_PROBLEMS else []
    return " ".join([f"{counted(good, 'item')} {verb}.", *wrong[:_MOST_PROBLEMS], *more])
