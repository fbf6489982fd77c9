"""The fenced blocks of a page, and the marks above them.

A mark is a comment on the line above a block, for readers of the source:

    <!-- output: of what -->           a program wrote the block, or the lines below its commands
    <!-- not run: the reason -->       the block cannot be checked here
    <!-- on: mysql, mariadb -->        the servers of its SQL or configuration; without a mark PostgreSQL
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CHECKOUT", "PAGES", "Block", "blocks_in", "blocks_of"]

CHECKOUT: Final = Path(__file__).resolve().parents[3]
PAGES: Final = tuple(
    str(path.relative_to(CHECKOUT))
    for path in [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]
)
_FENCE: Final = re.compile(r"^ *(?P<fence>`{3,}|~{3,})[ {.]*(?P<language>[\w+-]*)[^\n`]*$")
_MARK: Final = re.compile(r"<!-- (?P<kind>output|not run|on): (?P<text>.+?) -->")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block."""

    page: str  # its path in the checkout
    line: int  # where its text begins
    language: str  # "" if the fence names none
    text: str  # without the indentation of a list
    marks: dict[str, str]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def servers(self) -> list[str]:
        return [each.strip() for each in self.marks.get("on", "postgresql").split(",")]


def blocks_of(page: str) -> list[Block]:
    """Return the blocks of a page; `page` is its path in the repository."""
    return list(blocks_in((CHECKOUT / page).read_text(), page))


def blocks_in(text: str, page: str) -> Iterator[Block]:
    """Yield the blocks of this text.

    Raise AssertionError for a fence without an end, and for a mark without a block.
    """
    marks: dict[str, str] = {}
    numbered = iter(enumerate(text.splitlines(), start=1))
    for number, line in numbered:
        if found := _FENCE.match(line):
            inside = _until(found["fence"], numbered, f"{page}:{number}")
            yield Block(
                page=page,
                line=number + 1,
                language=found["language"],
                text=textwrap.dedent("\n".join(inside)) + "\n",
                marks=marks,
            )
            marks = {}
        elif line.strip():
            assert not marks, f"{page}:{number}: there is no block below the mark {marks}"
            marks = _marks_in(line) if line.lstrip().startswith("<!--") else {}
    assert not marks, f"{page}: there is no block below the mark {marks}"


def _marks_in(line: str) -> dict[str, str]:
    return {each["kind"]: each["text"] for each in _MARK.finditer(line)}


def _until(fence: str, lines: Iterator[tuple[int, str]], place: str) -> list[str]:
    inside = []
    for _, line in lines:
        if line.strip() == fence:
            return inside
        inside.append(line)
    raise AssertionError(f"{place}: the block has no end")
