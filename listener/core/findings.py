"""Findings about database, broker and workers: `check` shows one line each, `run` refuses to start with a problem."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum

from cdc_tasks.errors import CDCError
from cdc_tasks.variables import as_set
from listener.core.source import SourceError

__all__ = ["CloseNames", "Finding", "State", "finding_from", "raise_problems"]


class State(StrEnum):
    """The severity: the listener does not start with a problem."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that `check` examined."""

    what: str  # its display name: "wal_level", "table public.tickets"
    state: State = State.OK
    found: str
    code: str = ""  # stable: for programs that read `check --json`
    hint: str = ""  # the exact SQL or command, ready to paste; empty if all is well

    def __post_init__(self) -> None:
        """Let the hint name the variable that is set."""
        object.__setattr__(self, "hint", as_set(self.hint))


class CloseNames:
    """The existing names, to find the intended one.

    A search compares all names, so only the first `most` searches are done.
    """

    def __init__(self, names: Iterable[str], *, most: int = 10) -> None:
        """`most` is the number of searches."""
        self._names = tuple(names)
        self._left = most

    def meant(self, name: str) -> str:
        """Return a sentence with a name similar to `name`; empty if there is none."""
        if self._left <= 0:
            return ""
        self._left -= 1
        close = get_close_matches(name, self._names, n=3)
        found = next((each for each in close if _are_alike(name, each)), None)
        return f" Did you mean {found}?" if found else ""


def _are_alike(name: str, other: str) -> bool:
    """Return whether the last parts are similar, too: names of one schema always have a common part."""
    return bool(get_close_matches(name.rpartition(".")[2], [other.rpartition(".")[2]]))


def finding_from(what: str, error: CDCError, state: State = State.PROBLEM) -> Finding:
    """Return an error as a finding, with its code and hint."""
    return Finding(what=what, state=state, found=error.message, code=error.code, hint=error.hint or "")


def raise_problems(findings: Iterable[Finding]) -> None:
    """Raise one SourceError with all problems and their hints; ignore warnings.

    Its code is that of the problems if they share one.
    """
    problems = [each for each in findings if each.state is State.PROBLEM]
    if not problems:
        return
    message = "; ".join(f"{each.what}: {each.found}" for each in problems)
    hints = dict.fromkeys(each.hint for each in problems if each.hint)
    codes = {each.code for each in problems}
    code = codes.pop() if len(codes) == 1 else None
    raise SourceError(message, hint="\n".join(hints), code=code or None)
