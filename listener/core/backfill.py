"""What a backfill asks of a source: the rows that are there, in chunks, each in its place in the stream."""

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

Key = tuple[str, ...]  # a row's key: a text for each column, in the source's own form


class BackfillRefusedError(CDCError):
    """The source cannot bring the rows of this table; a person has to mend it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRequest:
    """Which rows a source is to read next."""

    backfill: str  # its id: with the table and the row's key it makes the id of a read
    schema: str
    table: str
    where: str | None = None  # a condition in the source's SQL; None: all rows
    after: Key | None = None  # the key of the last row that was read; None: from the first row on
    limit: int  # rows
    max_bytes: int = 4_000_000  # of values: wide rows come in smaller chunks


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Rows of a table, as they were at one place in the stream: the place at which their batch has them.

    What the stream brought before that place is in the rows, or the row is left out because the stream brought it.
    """

    request: ChunkRequest
    rows: Sequence[Change] = ()  # reads, in the order of the key
    found: int = 0  # how many rows the table had, with those that were left out
    last: Key | None = None  # the key up to which the table is read now
    is_end: bool = False  # there are no more rows
    at: datetime | None = None  # when the place was marked
    is_torn: bool = False  # changes came by that the source could not compare: ask for the same rows again
    error: CDCError | None = None  # why there are no rows


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePlan:
    """How a table would be read."""

    schema: str
    table: str
    key: tuple[str, ...]  # the columns in whose order it is read
    estimate: int  # rows, by the server's statistics
    columns: tuple[str, ...]
    query_plan: tuple[str, ...] = field(default=())  # of the first chunk, as the server explains it


def check_where(where: str | None) -> None:
    """Raise BackfillRefusedError if the condition could end the statement that it is put into."""
    if where is not None and (not where.strip() or _NOT_A_CONDITION.search(where)):
        raise BackfillRefusedError(
            f"{where!r} is no condition.",
            hint="Write what may stand after WHERE, without ; -- and /*, e.g. --where \"status = 'open'\"",
            code="backfill_where",
        )


_NOT_A_CONDITION: Final = re.compile(r";|--|/\*|\x00")
