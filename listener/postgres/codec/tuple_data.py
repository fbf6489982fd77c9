"""Rows as pgoutput sends them: bytes to server text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from struct import Struct
from typing import Final, NamedTuple

__all__ = ["UNCHANGED", "Row", "Splitting", "split_tuple", "split_tuples", "splitting"]


class _Unchanged:
    """Marks a value that the server did not send because it has not changed; it is not NULL."""

    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED: Final = _Unchanged()

Row = Sequence[bytes | _Unchanged | None]  # in the order of the table's columns: text, NULL, not sent

_TEXT, _NULL, _NOT_SENT = ord("t"), ord("n"), ord("u")
_SHORT_TEXT = b"t\0\0\0"  # the head of a text of up to 255 bytes; the last byte of its length follows
_past_length = itemgetter(slice(1, None))  # the text after such a head, without that byte
_BETWEEN = 3  # bytes between two tuples' values: which tuple follows, and its number of columns
_PAD = b"\0\0\0\0"  # lets kind and length be read together even if the last column has no length
_kind_and_length = Struct(">BI").unpack_from


def split_tuple(data: bytes, start: int) -> Row:
    """Split the TupleData at the end of a message (manual, "Logical Replication Message Formats") into its values.

    Text contains no zero byte. So if there are as many heads of short texts as columns, there is nothing else.
    """
    parts = data[start + 2 :].split(_SHORT_TEXT)
    if len(parts) - 1 == data[start] << 8 | data[start + 1]:
        del parts[0]
        return list(map(_past_length, parts))
    row, _ = _split_any(data, start)
    return row


def split_tuples(data: bytes, start: int) -> tuple[Row, Row]:
    """Split the two TupleData at the end of a message, an old and a new row of one table, into their values."""
    count = data[start] << 8 | data[start + 1]
    parts = data[start + 2 :].split(_SHORT_TEXT)
    if count and len(parts) - 1 == 2 * count:
        del parts[0]
        row = list(map(_past_length, parts))
        row[count - 1] = row[count - 1][:-_BETWEEN]
        return row[:count], row[count:]
    old, at = _split_any(data, start)
    return old, split_tuple(data, at + 1)


def _split_any(data: bytes, start: int) -> tuple[Row, int]:
    """Split any TupleData into its values; return them, and the index of its end. Raise ValueError."""
    row: list[bytes | _Unchanged | None] = []
    add = row.append
    count = data[start] << 8 | data[start + 1]
    data += _PAD
    at = start + 2
    for _ in range(count):
        kind, length = _kind_and_length(data, at)
        if kind == _TEXT:
            at += 5
            end = at + length
            add(data[at:end])
            at = end
        elif kind == _NULL:
            add(None)
            at += 1
        elif kind == _NOT_SENT:
            add(UNCHANGED)
            at += 1
        else:
            raise ValueError(f"a value of the kind {kind}")
    if at > len(data) - len(_PAD):
        raise ValueError("a tuple without its end")
    return row, at


class Splitting(NamedTuple):
    """The functions that split one tuple, or two, of texts in one encoding."""

    one: Callable[[bytes, int], Row]
    two: Callable[[bytes, int], tuple[Row, Row]]


def splitting(codec: str) -> Splitting:
    """Return the functions that split tuples into UTF-8 text; `codec` is Python's name for the server's encoding."""
    if codec == "utf-8":
        return Splitting(split_tuple, split_tuples)

    def recode(row: Row) -> Row:
        return [
            value.decode(codec, "backslashreplace").encode() if isinstance(value, bytes) else value
            for value in row
        ]

    def split_both(data: bytes, start: int) -> tuple[Row, Row]:
        old, new = split_tuples(data, start)
        return recode(old), recode(new)

    return Splitting(lambda data, start: recode(split_tuple(data, start)), split_both)
