"""What tasks with keys note of their runs, and whether the order was kept. It does not know how the order comes about.

All processes append to one file. The kernel puts each line behind those that were written before it, so the lines are
in the order in which things happened, and a killed process loses none.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

__all__ = ["Note", "Notes", "faults_in", "second_runs"]


class Note(NamedTuple):
    """One line: what a run of a task has noted."""

    what: str  # begin, fail, end; or kill, of an attack
    key: str  # or what was killed
    number: int
    run: str  # differs for each try of each delivery

    @classmethod
    def parse(cls, line: bytes) -> Self:
        what, key, number, run = line.decode().split()
        return cls(what, key, int(number), run)


class Notes:
    """The notes in a file that grows."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(b"")
        self._file = path.open("rb")
        self._rest = b""
        self.all: list[Note] = []
        self.done: set[int] = set()  # the changes whose task has ended

    def close(self) -> None:
        self._file.close()

    def add(self, what: str) -> None:
        """Note that something is killed now."""
        with Path(self._file.name).open("ab", buffering=0) as file:
            file.write(f"kill {what} 0 -\n".encode())

    def read(self) -> int:
        """Read what is new, and return how many notes that was."""
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        found = [Note.parse(line) for line in lines]
        self.all += found
        self.done.update(note.number for note in found if note.what == "end")
        return len(found)


def faults_in(
    notes: Iterable[Note], expected: dict[int, str], may_repeat: Collection[int] = frozenset()
) -> list[str]:
    """Return what is wrong: order and overlaps of each key, and effects that are missing.

    `expected`: the key of each number, which grow in the order of the commits. A run without an end was killed; nothing
    may come from it after another run of its key has begun. Those of `may_repeat` were perhaps published twice: done
    once, they may run again behind later ones of their key, one at a time like all others.
    """
    found = []
    of_key = _by_key(notes)
    done = {note.number for its in of_key.values() for note in its if note.what == "end"}
    for key, its in of_key.items():
        found += [f"{note.number} ran with the key {key}" for note in its if expected.get(note.number) != key]
        found += _faults_of_key(key, its, may_repeat)
    return [
        f"{number} of {key} had no effect" for number, key in expected.items() if number not in done
    ] + found


def second_runs(notes: Iterable[Note]) -> int:
    """Return how many runs began although their task had ended before."""
    found, ended = 0, set[int]()
    for note in notes:
        found += note.what == "begin" and note.number in ended
        if note.what == "end":
            ended.add(note.number)
    return found


def _by_key(notes: Iterable[Note]) -> dict[str, list[Note]]:
    found: dict[str, list[Note]] = defaultdict(list)
    for note in notes:
        if note.what != "kill":
            found[note.key].append(note)
    return found


def _faults_of_key(key: str, notes: Sequence[Note], may_repeat: Collection[int]) -> list[str]:
    found, last, run, ended = [], 0, "", set[int]()
    for note in notes:
        if note.what == "begin":
            run = note.run
            if note.number < last and not (note.number in ended and note.number in may_repeat):
                found.append(f"{key}: {note.number} began after {last}")
            elif note.number > last and last and last not in ended:
                found.append(f"{key}: {note.number} began before {last} was done")
            last = max(last, note.number)
        elif note.run != run:
            found.append(f"{key}: {note.number} was still running when the next run had begun")
        if note.what == "end":
            ended.add(note.number)
    return found
