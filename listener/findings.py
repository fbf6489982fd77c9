"""What a look at the surroundings found: one line each for `check`, and what `run` refuses to start with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from cdc_tasks.errors import CDCError
from listener.monitor import SourceError

__all__ = ["Finding", "State", "finding_from", "raise_problems"]


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
    cure: str = ""  # the exact SQL or command, ready to paste; empty where all is well


def finding_from(what: str, error: CDCError, state: State = State.PROBLEM) -> Finding:
    """Return what an error says as a finding."""
    return Finding(what=what, state=state, found=error.message, cure=error.hint or "")


def raise_problems(findings: Iterable[Finding]) -> None:
    """Raise one SourceError that tells all problems with their cures; warnings and what is well pass."""
    problems = [each for each in findings if each.state is State.PROBLEM]
    if not problems:
        return
    told = "; ".join(f"{each.what}: {each.found}" for each in problems)
    cures = dict.fromkeys(each.cure for each in problems if each.cure)
    raise SourceError(told, hint="\n".join(cures))
