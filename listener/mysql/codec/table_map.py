"""The TABLE_MAP event, which describes the rows that follow. Pure: bytes to values.

Sources: MySQL's "Table_map_event" in its source documentation, MariaDB's "TABLE_MAP_EVENT".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum

__all__ = ["OLD_TEMPORAL", "Column", "ColumnType", "TableMap", "packed_integer", "parse_table_map"]


class ColumnType(IntEnum):
    """The types of columns; the numbers are the protocol's."""

    TINY = 1
    SHORT = 2
    LONG = 3
    FLOAT = 4
    DOUBLE = 5
    TIMESTAMP = 7
    LONGLONG = 8
    INT24 = 9
    DATE = 10
    TIME = 11
    DATETIME = 12
    YEAR = 13
    NEWDATE = 14
    VARCHAR = 15
    BIT = 16
    TIMESTAMP2 = 17
    DATETIME2 = 18
    TIME2 = 19
    BLOB_COMPRESSED = 140  # this one and the next are MariaDB's
    VARCHAR_COMPRESSED = 141
    VECTOR = 242
    JSON = 245
    NEWDECIMAL = 246
    ENUM = 247
    SET = 248
    TINY_BLOB = 249
    MEDIUM_BLOB = 250
    LONG_BLOB = 251
    BLOB = 252
    VAR_STRING = 253
    STRING = 254
    GEOMETRY = 255


_T = ColumnType
_NUMERIC = frozenset(
    {_T.TINY, _T.SHORT, _T.INT24, _T.LONG, _T.LONGLONG, _T.NEWDECIMAL, _T.FLOAT, _T.DOUBLE, _T.YEAR}
)
_CHARACTER = frozenset(
    {_T.STRING, _T.VAR_STRING, _T.VARCHAR, _T.BLOB, _T.BLOB_COMPRESSED, _T.VARCHAR_COMPRESSED}
)
_LABELLED = frozenset({_T.ENUM, _T.SET})
# Of tables created before MySQL 5.6, or on MariaDB with mysql56_temporal_format=OFF: the log lacks the digit count.
OLD_TEMPORAL = frozenset({_T.TIMESTAMP, _T.DATETIME, _T.TIME})
_ONE_BYTE = frozenset(
    {
        *(
            _T.FLOAT,
            _T.DOUBLE,
            _T.TIMESTAMP2,
            _T.DATETIME2,
            _T.TIME2,
            _T.BLOB,
            _T.GEOMETRY,
            _T.JSON,
            _T.VECTOR,
        ),
        *(_T.TINY_BLOB, _T.MEDIUM_BLOB, _T.LONG_BLOB, _T.BLOB_COMPRESSED),
    }
)
_TWO_BYTES = frozenset(
    {_T.VARCHAR, _T.VARCHAR_COMPRESSED, _T.BIT, _T.NEWDECIMAL, _T.STRING, _T.VAR_STRING, _T.ENUM, _T.SET}
)

# The optional metadata's fields.
_SIGNEDNESS, _DEFAULT_CHARSET, _COLUMN_CHARSET, _NAMES, _SET_LABELS, _ENUM_LABELS = 1, 2, 3, 4, 5, 6
_KEY, _KEY_WITH_PREFIX, _LABEL_DEFAULT_CHARSET, _LABEL_CHARSET = 8, 9, 10, 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table, as of one position in the log."""

    name: str  # empty if the server did not log it: binlog_row_metadata is not FULL
    type: ColumnType
    metadata: bytes  # what depends on the type: length, precision, …
    nullable: bool
    unsigned: bool = False
    collation: int = 0  # its number; 63 is binary, 0 unknown
    labels: tuple[bytes, ...] | None = None  # of ENUM and SET
    key: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TableMap:
    """One version of a table's definition."""

    schema: str
    name: str
    columns: tuple[Column, ...]

    @property
    def has_names(self) -> bool:
        """Whether the log has the columns' names."""
        return all(column.name for column in self.columns)


def packed_integer(data: bytes, at: int) -> tuple[int, int]:
    """Return a length-encoded integer, and the index after it."""
    first = data[at]
    if first < 251:
        return first, at + 1
    size = {252: 2, 253: 3, 254: 8}[first]
    return int.from_bytes(data[at + 1 : at + 1 + size], "little"), at + 1 + size


def parse_table_map(body: bytes, *, mariadb: bool) -> TableMap:
    """Parse an event's body, from the schema's name on.

    Raise ValueError if a column's type is unknown: then nothing after it can be read.
    """
    schema, at = _name(body, 0)
    name, at = _name(body, at)
    count, at = packed_integer(body, at)
    types = body[at : at + count]
    size, at = packed_integer(body, at + count)
    resolved = list(_column_types(types, body[at : at + size]))
    at += size
    nullable = int.from_bytes(body[at : at + (count + 7) // 8], "little")
    optional = _Optional(body, at + (count + 7) // 8, [kind for kind, _ in resolved], mariadb=mariadb)
    columns = tuple(
        Column(
            name=optional.names.get(place, ""),
            type=kind,
            metadata=metadata,
            nullable=bool(nullable >> place & 1),
            unsigned=place in optional.unsigned,
            collation=optional.collations.get(place, 0),
            labels=optional.labels.get(place),
            key=place in optional.key,
        )
        for place, (kind, metadata) in enumerate(resolved)
    )
    return TableMap(schema=schema, name=name, columns=columns)


def _name(body: bytes, at: int) -> tuple[str, int]:
    end = at + 1 + body[at]
    return body[at + 1 : end].decode(errors="backslashreplace"), end + 1


def _column_types(types: bytes, metadata: bytes) -> Iterator[tuple[ColumnType, bytes]]:
    at = 0
    for number in types:
        kind = ColumnType(number)
        size = 1 if kind in _ONE_BYTE else 2 if kind in _TWO_BYTES else 0
        own = metadata[at : at + size]
        at += size
        if kind is _T.STRING and own[0] in _LABELLED:
            kind = ColumnType(own[0])
        yield kind, own


class _Optional:
    """The optional metadata: one field for each property, with the columns that have it."""

    def __init__(self, body: bytes, at: int, types: list[ColumnType], *, mariadb: bool) -> None:
        self.names: dict[int, str] = {}
        self.unsigned: set[int] = set()
        self.collations: dict[int, int] = {}
        self.labels: dict[int, tuple[bytes, ...]] = {}
        self.key: set[int] = set()
        character = _CHARACTER | ({_T.GEOMETRY} if mariadb else set())
        self._places: Callable[[frozenset[ColumnType]], list[int]] = lambda wanted: [
            place for place, kind in enumerate(types) if kind in wanted
        ]
        self._character = self._places(frozenset(character))
        while at < len(body):
            field = body[at]
            length, at = packed_integer(body, at + 1)
            self._read(field, body[at : at + length])
            at += length

    def _read(self, field: int, value: bytes) -> None:
        if field == _SIGNEDNESS:
            numeric = enumerate(self._places(_NUMERIC))
            self.unsigned = {place for bit, place in numeric if value[bit // 8] & 0x80 >> bit % 8}
        elif field == _NAMES:
            self.names = {place: text.decode() for place, text in enumerate(_strings(value))}
        elif field in {_DEFAULT_CHARSET, _LABEL_DEFAULT_CHARSET}:
            self._default_collation(self._charset_places(field == _DEFAULT_CHARSET), list(_integers(value)))
        elif field in {_COLUMN_CHARSET, _LABEL_CHARSET}:
            self.collations.update(zip(self._charset_places(field == _COLUMN_CHARSET), _integers(value)))  # noqa: B905 - MariaDB may leave out the last
        elif field in {_SET_LABELS, _ENUM_LABELS}:
            places = self._places(frozenset({_T.SET if field == _SET_LABELS else _T.ENUM}))
            self.labels.update(zip(places, _lists(value), strict=True))
        elif field == _KEY:
            self.key = set(_integers(value))
        elif field == _KEY_WITH_PREFIX:
            self.key = set(list(_integers(value))[::2])

    def _charset_places(self, of_characters: bool) -> list[int]:  # noqa: FBT001 - else of labels
        return self._character if of_characters else self._places(_LABELLED)

    def _default_collation(self, places: list[int], numbers: list[int]) -> None:
        self.collations.update(dict.fromkeys(places, numbers[0]))
        for index, collation in zip(numbers[1::2], numbers[2::2], strict=True):
            self.collations[places[index]] = collation


def _integers(value: bytes) -> Iterator[int]:
    at = 0
    while at < len(value):
        number, at = packed_integer(value, at)
        yield number


def _strings(value: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(value):
        length, at = packed_integer(value, at)
        yield value[at : at + length]
        at += length


def _lists(value: bytes) -> Iterator[tuple[bytes, ...]]:
    at = 0
    while at < len(value):
        count, at = packed_integer(value, at)
        labels = []
        for _ in range(count):
            length, at = packed_integer(value, at)
            labels.append(value[at : at + length])
            at += length
        yield tuple(labels)
