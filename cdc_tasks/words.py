"""Words in texts for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["counted", "described_context"]


def counted(number: float, one: str, many: str | None = None) -> str:
    """Return a number with its noun: "1 change", "2 changes"; `many` if it is not `one` with an s."""
    shown = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{shown} {one if number == 1 else many or f'{one}s'}"


def described_context(context: Mapping[str, Any]) -> str:
    """Return values of a context: "user_id=7 request_id=a"."""
    return " ".join(f"{name}={value}" for name, value in context.items())
