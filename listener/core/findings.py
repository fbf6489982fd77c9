"""What a look at the surroundings found: one line each for `check`, and what `run` refuses to start with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum

from cdc_tasks.errors import CDCError
from listener.core.source import SourceError

__all__ = ["CloseNames", "Finding", "State", "finding_from", "raise_problems"]


class State(StrEnum):
    """How bad it is: only a problem keeps the listener from running."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    what: str  # as a person would call it: "wal_level", "table public.tickets"
    state: State = State.OK
    found: str
    hint: str = ""  # the exact SQL or command, ready to paste; empty where all is well


class CloseNames:
    """The names that there are, to find the one that somebody meant.

    A look compares all of them, so that only the first few that ask are answered.
    """

    def __init__(self, names: Iterable[str], *, most: int = 10) -> None:
        """`most` is how often it looks."""
        self._names = tuple(names)
        self._left = most

    def meant(self, name: str) -> str:
        """Return a sentence with the name that is close to this one, empty where there is none."""
        if self._left <= 0:
            return ""
        self._left -= 1
        close = get_close_matches(name, self._names, n=1)
        return f" Did you mean {close[0]}?" if close else ""


def finding_from(what: str, error: CDCError, state: State = State.PROBLEM) -> Finding:
    """Return what an error says as a finding."""
    return Finding(what=what, state=state, found=error.message, hint=error.hint or "")


def raise_problems(findings: Iterable[Finding]) -> None:
    """Raise one SourceError that tells all problems with their hints; warnings and what is well pass."""
    problems = [each for each in findings if each.state is State.PROBLEM]
    if not problems:
        return
    told = "; ".join(f"{each.what}: {each.found}" for each in problems)
    hints = dict.fromkeys(each.hint for each in problems if each.hint)
    raise SourceError(told, hint="\n".join(hints))
