"""A table of the application as `python -m listener init` finds it, for a first file of routes."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ExistingTable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExistingTable:
    """A table, and whether a route can name it as it is."""

    schema: str
    name: str
    key: tuple[str, ...]  # the columns that identify a row in the log; may be empty
    columns: tuple[str, ...]
    remark: str = ""  # what its log contains in addition, or lacks
    obstacle: str = ""  # why no route should name it yet, and what to do
