"""What a backfill needs from a source: the existing rows, in chunks, each at its position in the stream."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from cdc_tasks.changes import Change
from cdc_tasks.errors import CDCError

__all__ = [
    "BackfillRefusedError",
    "Chunk",
    "ChunkRequest",
    "Key",
    "TablePlan",
    "check_where",
]

Key = tuple[str, ...]  # a row's key: a string per column, in the source's own format


class BackfillRefusedError(CDCError):
    """The source cannot read the rows of this table; a person has to fix it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRequest:
    """The rows that a source has to read next."""

    backfill: str  # its id: part of the id of each read, with the table and the row's key
    schema: str
    table: str
    where: str | None = None  # a condition in the source's SQL; None: all rows
    after: Key | None = None  # the key of the last row read; None: start with the first row
    limit: int  # rows
    max_bytes: int = 4_000_000  # of values: wide rows come in smaller chunks


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Rows of a table as of one position in the stream: the position of their batch.

    A change that the stream sent before it is in the rows, or its row is left out because the stream has sent it.
    """

    request: ChunkRequest
    rows: Sequence[Change] = ()  # reads, in the order of the key
    found: int = 0  # rows found, including those left out
    last: Key | None = None  # the key up to which the table has been read
    is_end: bool = False  # there are no more rows
    at: datetime | None = None  # when the position was marked
    is_torn: bool = False  # the source could not compare some changes: request the same rows again
    error: CDCError | None = None  # why there are no rows


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePlan:
    """How a backfill would read a table."""

    schema: str
    table: str
    key: tuple[str, ...]  # the columns that define the reading order
    estimate: int  # rows, from the server's statistics
    columns: tuple[str, ...]
    query_plan: tuple[str, ...] = field(default=())  # of the first chunk, from the server's EXPLAIN


def check_where(where: str | None) -> None:
    """Raise BackfillRefusedError if the condition could end the statement that contains it."""
    if where is not None and (not where.strip() or _NOT_A_CONDITION.search(where)):
        raise BackfillRefusedError(
            f"{where!r} is not a condition.",
            hint="Write a condition as after WHERE, without ; -- and /*, e.g. --where \"status = 'open'\"",
            code="backfill_where",
        )


_NOT_A_CONDITION: Final = re.compile(r";|--|/\*|\x00")
