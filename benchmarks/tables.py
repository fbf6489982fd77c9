"""Tables and ratios for the page."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["ratio", "table"]


def ratio(value: float) -> str:
    """Return a ratio with its significant digits."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2f}" if value < 1 else f"{value:.1f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown; its first column is text, the others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
