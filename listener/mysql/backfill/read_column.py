"""A column in a SELECT: its text, and the conversion to the same JSON as from the stream's bytes.

The session sends texts in the column's own character set (`character_set_results = NULL`), and times in UTC.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, NamedTuple

import orjson

from listener.core import row_json
from listener.core.backfill import BackfillRefusedError
from listener.mysql.charsets import Decode
from listener.mysql.codec import values
from listener.mysql.codec.column_layout import Layout
from listener.mysql.codec.values import Convert

__all__ = ["ReadColumn", "quoted_name", "read_layout"]


class ReadColumn(NamedTuple):
    """A column in the catalogue."""

    name: str
    type: str  # bigint, varchar, …
    full_type: str  # bigint(20) unsigned zerofill, …
    charset: str | None  # of a text
    digits: int  # of a time's fraction
    is_document: bool = False  # a JSON, which MariaDB calls a LONGTEXT

    @property
    def selected(self) -> str:
        """The expression for SELECT. A FLOAT's own text has six digits, so it is sent as a DOUBLE."""
        quoted = quoted_name(self.name)
        if self.type in _FLOATS:
            return f"{quoted} * 1e0"
        return f"{quoted} + 0" if self.type in _INTEGERS and "zerofill" in self.full_type else quoted

    @property
    def ordered(self) -> str:
        """The expression that compares as the server orders the column.

        A literal compares with an ENUM or SET by its text, and with a YEAR as if it had two digits.
        """
        quoted = quoted_name(self.name)
        return f"{quoted} + 0" if self.type in _BY_NUMBER else quoted

    @property
    def key_selected(self) -> str:
        """The expression for SELECT whose text `key_text` takes."""
        return self.ordered if self.type in _BY_NUMBER | {"bit"} else self.selected

    def key_text(self, value: bytes) -> str:
        """Return a value of a key as stored in the progress: numbers and times unchanged, other bytes as hex."""
        if self.type == "bit":
            return str(int.from_bytes(value, "big"))
        return value.decode() if self.type in _PLAIN_KEYS else value.hex()

    def literal(self, text: str) -> str:
        """Return the literal for an output of `key_text`."""
        if self.type in _FLOATS:
            return text if "e" in text else f"{text}e0"
        if self.type in _NUMBERS:
            return text
        if self.type in _PLAIN_KEYS:
            return f"'{text}'"
        return f"_{self.charset} X'{text}'" if self.charset else f"X'{text}'"


def read_layout(column: ReadColumn, decoder: Callable[[str], Decode]) -> Layout:
    """Return what a table needs to write the column as JSON; `decoder` returns that of a character set.

    Raise BackfillRefusedError if the type is unknown.
    """
    if column.charset is None:
        make = _CONVERTERS.get(column.type)
        if make is None:
            raise BackfillRefusedError(
                f"The column {column.name} has a type that a backfill cannot read: {column.type}.",
                hint="Update cdc-tasks, and report this with the server's version.",
                code="backfill_type",
            )
        return Layout("", 0, counted=False, convert=make(column))
    is_utf8 = column.charset in _UTF8
    decode = None if is_utf8 else decoder(column.charset)
    return Layout(
        "", 0, counted=False, convert=_text(decode, column), is_utf8=is_utf8 and not column.is_document
    )


def _text(decode: Decode | None, column: ReadColumn) -> Convert:
    if column.is_document and decode is None:
        return values.text_or_document
    if decode is None:
        return row_json.string
    known = decode
    if column.is_document:
        return lambda value: values.text_or_document(known(value).encode())
    return lambda value: orjson.dumps(known(value))


def _plain(value: bytes) -> bytes:
    return value


def _integer(_: ReadColumn) -> Convert:
    return _plain


def _quoted(_: ReadColumn) -> Convert:
    return values.quoted


def _base64(_: ReadColumn) -> Convert:
    return values.base64


def _float4(_: ReadColumn) -> Convert:
    return lambda value: values.float4(float(value))


def _float8(_: ReadColumn) -> Convert:
    return lambda value: values.float8(float(value))


def _year(_: ReadColumn) -> Convert:
    return lambda value: b"%d" % int(value)


def _document(_: ReadColumn) -> Convert:
    return row_json.document


def _decimal(column: ReadColumn) -> Convert:
    if "zerofill" not in column.full_type:
        return values.quoted
    return lambda value: values.quoted(_LEADING_ZEROS.sub(b"", value))


def _bit(column: ReadColumn) -> Convert:
    found = _LENGTH.search(column.full_type)
    return values.bits(int(found[1]) if found else 1)


def _time(_: ReadColumn) -> Convert:
    def convert(value: bytes) -> bytes:
        whole, _, fraction = value.partition(b".")
        micro = _micro(fraction)
        return b'"%b.%06d"' % (whole, micro) if micro else b'"%b"' % whole

    return convert


def _datetime(column: ReadColumn) -> Convert:
    digits = column.digits

    def convert(value: bytes) -> bytes:
        date, _, clock = value.partition(b" ")
        whole, _, fraction = clock.partition(b".")
        micro = _micro(fraction)
        if not _SURE_DATE(date):
            year, month, day = map(int, date.split(b"-"))
            hour, minute, second = map(int, whole.split(b":"))
            return values.moment((year, month, day, hour, minute, second), micro, digits)
        return b'"%bT%b.%06d"' % (date, whole, micro) if micro else b'"%bT%b"' % (date, whole)

    return convert


def _timestamp(_: ReadColumn) -> Convert:
    def convert(value: bytes) -> bytes:
        date, _, clock = value.partition(b" ")
        if date == b"0000-00-00":
            return values.quoted(value)
        whole, _, fraction = clock.partition(b".")
        micro = _micro(fraction)
        return b'"%bT%b.%06d+00:00"' % (date, whole, micro) if micro else b'"%bT%b+00:00"' % (date, whole)

    return convert


def _micro(fraction: bytes) -> int:
    return int(fraction.ljust(6, b"0")) if fraction else 0


def quoted_name(name: str) -> str:
    """Return a name quoted for SQL."""
    return "`" + name.replace("`", "``") + "`"


# A date that exists, whatever the month: days after the 28th and zeros are looked at again.
_SURE_DATE: Final = re.compile(rb"(?!0000)\d{4}-(?!00)\d\d-(?!00)(?:[01]\d|2[0-8])").fullmatch
_LEADING_ZEROS: Final = re.compile(rb"\A0+(?=\d)")
_LENGTH: Final = re.compile(r"\((\d+)\)")
_UTF8: Final = frozenset({"utf8mb4", "utf8mb3", "utf8", "ascii"})

_INTEGERS: Final = frozenset({"tinyint", "smallint", "mediumint", "int", "bigint"})
_FLOATS: Final = frozenset({"float", "double"})
_BY_NUMBER: Final = frozenset({"enum", "set", "year"})
_NUMBERS: Final = _INTEGERS | _BY_NUMBER | {"decimal", "bit"}
_PLAIN_KEYS: Final = _NUMBERS | _FLOATS | {"date", "datetime", "timestamp", "time", "uuid", "inet4", "inet6"}
_SHAPES: Final = (
    *("geometry", "point", "linestring", "polygon", "multipoint", "multilinestring", "multipolygon"),
    *("geomcollection", "geometrycollection"),
)

_CONVERTERS: Final[dict[str, Callable[[ReadColumn], Convert]]] = {
    **dict.fromkeys(_INTEGERS, _integer),
    **dict.fromkeys(("binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob", "vector"), _base64),
    **dict.fromkeys(_SHAPES, _base64),
    **dict.fromkeys(("date", "uuid", "inet4", "inet6"), _quoted),
    "float": _float4,
    "double": _float8,
    "decimal": _decimal,
    "year": _year,
    "bit": _bit,
    "time": _time,
    "datetime": _datetime,
    "timestamp": _timestamp,
    "json": _document,
}
