"""Markdown: pages, tables, and texts that stand for themselves."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Sequence

__all__ = ["code", "escaped", "first_sentence", "page", "table", "unwrapped"]

_NOTE = "<!-- Made from the code by `make reference`: change the words there. -->"
_SPECIAL = re.compile(r"([\\`*\[\]<>|])")


def page(title: str, *parts: str) -> str:
    """Return a page of these parts, without those that are empty."""
    return "\n\n".join([_NOTE, f"# {title}", *filter(None, (part.strip("\n") for part in parts))]) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table, without columns that are empty; an empty text without rows."""
    cells = list(rows)
    used = [place for place in range(len(head)) if any(row[place] for row in cells)]
    lines = [_row([row[place] for place in used]) for row in (head, ["---"] * len(head), *cells)]
    return "\n".join(lines) if cells else ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell or ' ' for cell in cells)} |"


def escaped(text: str) -> str:
    """Return a text as Markdown that shows just this text; what stands between backquotes stays code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a backquote without its twin
        return _SPECIAL.sub(r"\\\1", text)
    return "`".join(each if place % 2 else _SPECIAL.sub(r"\\\1", each) for place, each in enumerate(parts))


def code(text: str) -> str:
    """Return a text as code that may stand in a table; empty if it is empty."""
    if "|" in text or "`" in text:  # no backslash takes the meaning from these inside of backquotes
        return f"<code>{html.escape(text, quote=False).replace('|', '&#124;')}</code>"
    return f"`{text}`" if text else ""


def unwrapped(text: str, each: Callable[[str], str] = lambda part: part) -> str:
    """Return a docstring as Markdown, with each paragraph and each point of a list on one line.

    What is indented is code, and stays as it is; `each` is done to the rest.
    """
    paragraphs = re.split(r"\n\s*\n", text)
    return "\n\n".join(part if part.startswith("    ") else _in_lines(part, each) for part in paragraphs)


def _in_lines(paragraph: str, each: Callable[[str], str]) -> str:
    points = re.split(r"^- ", paragraph, flags=re.MULTILINE)
    if len(points) == 1:
        return each(" ".join(paragraph.split()))
    head = each(" ".join(points[0].split()))
    return "\n".join(filter(None, [head, *(f"- {each(' '.join(point.split()))}" for point in points[1:])]))


def first_sentence(text: str) -> str:
    """Return a docstring's first sentence."""
    paragraph = " ".join(text.split("\n\n", maxsplit=1)[0].split())
    return re.split(r"(?<=[.?!])\s", paragraph, maxsplit=1)[0]
