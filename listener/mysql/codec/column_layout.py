"""How a column's value is stored in a row, and what converts it to JSON."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import orjson

from listener.mysql.charsets import BINARY, Charsets
from listener.mysql.codec import json_binary, values
from listener.mysql.codec.table_map import OLD_TEMPORAL, Column, ColumnType
from listener.mysql.codec.values import Convert

__all__ = ["CatalogueColumn", "Layout", "layout_of"]


class CatalogueColumn(NamedTuple):
    """A column in MariaDB's catalogue now."""

    type: str  # uuid, inet4, json, … in lower case
    digits: int | None = None  # of the fraction of a temporal type
    is_old: bool = False  # a temporal type in its form before MySQL 5.6
    is_row_end: bool = False  # the end of a row's validity, in a table with system versioning


_T = ColumnType
_FIXED_CODE: Final = {1: "B", 2: "H", 4: "I", 8: "Q"}


class Layout(NamedTuple):
    """One column's part of a row."""

    code: str  # for `struct`, little-endian: of the value, or of its length
    size: int  # of that, in bytes
    counted: bool  # the value follows its length
    convert: Convert  # what was read -> JSON; raises only for text that is not in its character set
    is_integer: bool = False  # what was read is an int, and its JSON the number
    is_utf8: bool = False  # what was read is text in UTF-8


_UNKNOWN: Final = CatalogueColumn("")


def layout_of(column: Column, charsets: Charsets, known: CatalogueColumn = _UNKNOWN) -> Layout:
    """Return the column's layout; `known` is the information that only MariaDB's catalogue has.

    Raise ValueError if the column's length is unknown: then nothing after it can be read.
    """
    kind = column.type
    if kind in OLD_TEMPORAL and known.digits:
        return _OLD_TEMPORAL[kind](known.digits)
    if kind in _INTEGERS:
        code, size = _INTEGERS[kind]
        return Layout(code.upper() if column.unsigned else code, size, False, _integer, is_integer=True)
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind in _BY_METADATA:
        return _BY_METADATA[kind](column)
    if kind in {_T.ENUM, _T.SET}:
        return _labelled(column, charsets)
    return _string(column, charsets, known) if kind is _T.STRING else _long(column, charsets, known)


def _integer(value: int) -> bytes:
    return b"%d" % value


def _fixed(size: int, convert: Convert) -> Layout:
    return Layout(f"{size}s", size, False, convert)


def _counted(size: int, convert: Convert = values.base64) -> Layout:
    return Layout({1: "B", 2: "H", 3: "3s", 4: "I"}[size], size, True, convert)


def _with_fraction(size: int, convert: Callable[[int], Convert]) -> Callable[[Column], Layout]:
    """Return the layout of a temporal type whose metadata is the number of digits of its fraction."""

    def layout(column: Column) -> Layout:
        digits = column.metadata[0]
        if digits > 6:
            raise ValueError(f"a fraction of {digits} digits")
        return _fixed(size + (digits + 1) // 2, convert(digits))

    return layout


def _decimal(column: Column) -> Layout:
    precision, scale = column.metadata
    return _fixed(values.decimal_size(precision, scale), values.decimal(precision, scale))


def _bit(column: Column) -> Layout:
    bits, whole = column.metadata
    if bits > 7 or whole > 8:
        raise ValueError(f"a BIT of {whole} bytes and {bits} bits")
    return _fixed(whole + (bits > 0), values.bits(whole * 8 + bits))


def _medium(column: Column) -> Layout:
    return _fixed(3, values.medium(unsigned=column.unsigned))


_INTEGERS: Final = {_T.TINY: ("b", 1), _T.SHORT: ("h", 2), _T.LONG: ("i", 4), _T.LONGLONG: ("q", 8)}
_PLAIN: Final = {
    _T.FLOAT: Layout("f", 4, False, values.float4),
    _T.DOUBLE: Layout("d", 8, False, values.float8),
    _T.YEAR: Layout("B", 1, False, values.year),
    _T.DATE: _fixed(3, values.plain_date),
    _T.NEWDATE: _fixed(3, values.plain_date),
    _T.TIME: _fixed(3, values.time_old),
    _T.DATETIME: Layout("Q", 8, False, values.datetime_old),
    _T.TIMESTAMP: Layout("I", 4, False, values.timestamp_old),
}
_BY_METADATA: Final[dict[ColumnType, Callable[[Column], Layout]]] = {
    _T.INT24: _medium,
    _T.NEWDECIMAL: _decimal,
    _T.BIT: _bit,
    _T.DATETIME2: _with_fraction(5, values.datetime2),
    _T.TIMESTAMP2: _with_fraction(4, values.timestamp2),
    _T.TIME2: _with_fraction(3, values.time2),
    _T.GEOMETRY: lambda column: _counted(column.metadata[0]),
    _T.VECTOR: lambda column: _counted(column.metadata[0]),
    _T.JSON: lambda column: _counted(column.metadata[0], json_binary.document),
}
_OLD_TEMPORAL: Final[dict[ColumnType, Callable[[int], Layout]]] = {
    _T.DATETIME: lambda digits: _fixed((5, 6, 6, 7, 7, 7, 8)[digits], values.datetime_hires(digits)),
    _T.TIMESTAMP: lambda digits: _fixed(4 + (digits + 1) // 2, values.timestamp_hires(digits)),
    _T.TIME: lambda digits: _fixed((3, 4, 4, 5, 5, 5, 6)[digits], values.time_hires(digits)),
}
_BLOBS: Final = frozenset({_T.BLOB, _T.TINY_BLOB, _T.MEDIUM_BLOB, _T.LONG_BLOB, _T.BLOB_COMPRESSED})
_VARCHARS: Final = frozenset({_T.VARCHAR, _T.VAR_STRING, _T.VARCHAR_COMPRESSED})


def _labelled(column: Column, charsets: Charsets) -> Layout:
    size = column.metadata[1]
    if column.labels is None:  # only in a table that no route selects: `Tables` refuses a selected one
        return _fixed(size, values.base64)
    decode = charsets.decoder(column.collation) if column.collation else bytes.decode
    labels = tuple(decode(label) for label in column.labels)
    if column.type is _T.ENUM:
        return Layout(_FIXED_CODE[size], size, False, values.enumerated(labels))
    return _fixed(size, values.members(labels))


def _long(column: Column, charsets: Charsets, known: CatalogueColumn) -> Layout:
    """Return the layout of VARCHAR, TEXT and BLOB, and of MariaDB's COMPRESSED ones."""
    kind, metadata = column.type, column.metadata
    if kind in _BLOBS:
        counted = _counted(metadata[0])
    elif kind in _VARCHARS:
        counted = _counted(2 if int.from_bytes(metadata, "little") > 255 else 1)
    else:
        raise ValueError(f"a column of type {kind}")
    layout = _text(counted, column, charsets, known)
    return _compressed(layout) if kind in {_T.BLOB_COMPRESSED, _T.VARCHAR_COMPRESSED} else layout


def _string(column: Column, charsets: Charsets, known: CatalogueColumn) -> Layout:
    """Return the layout of CHAR and BINARY; the two bytes of metadata hold the greatest length."""
    length = ((column.metadata[0] & 0x30 ^ 0x30) << 4) + column.metadata[1]
    counted = _counted(2 if length > 255 else 1)
    if known.type == "uuid":
        return counted._replace(convert=values.uuid)
    if known.type in {"inet4", "inet6"}:
        return counted._replace(convert=partial(values.inet, size=length))
    if charsets.name(column.collation or 63) == BINARY:
        return counted._replace(convert=values.padded(length))
    return _text(counted, column, charsets, known)


def _text(counted: Layout, column: Column, charsets: Charsets, known: CatalogueColumn) -> Layout:
    collation = column.collation or 63
    if charsets.name(collation) == BINARY:
        return counted
    decode = charsets.decoder(collation)
    if known.type == "json" and counted.size == 4:  # a LONGTEXT: any other type with such a CHECK is text
        if charsets.is_utf8(collation):
            return counted._replace(convert=values.text_or_document)
        return counted._replace(convert=lambda value: values.text_or_document(decode(value).encode()))
    return counted._replace(
        convert=lambda value: orjson.dumps(decode(value)), is_utf8=charsets.is_utf8(collation)
    )


def _compressed(layout: Layout) -> Layout:
    convert: Any = values.uncompressed(layout.convert)
    return layout._replace(convert=convert, is_utf8=False)
