"""PostgreSQL's text of a value as JSON.

The same value looks the same from each source and plugin. A value without its own form in JSON, or an
unknown one, becomes a string with the server's text: a value never stops the stream.
The texts are those of a session with `DateStyle=ISO`, `IntervalStyle=postgres`, `TimeZone=UTC`,
`extra_float_digits=1`, `bytea_output=hex` and `client_encoding=UTF8`.
"""

from __future__ import annotations

import re
from binascii import unhexlify
from collections.abc import Callable
from functools import cache

from pybase64 import b64encode

from listener.core import row_json
from listener.postgres.codec.builtin_types import BUILTIN, ValueType

__all__ = ["BUILTIN", "Convert", "ValueType", "array_converter", "converter", "verbatim"]

Convert = Callable[[bytes], bytes]
"""Converts the server's text of a value, which is not NULL, to JSON. Never raises."""


@cache
def converter(value_type: ValueType) -> Convert:
    """Return the function that renders a value of this type as JSON."""
    if value_type.kind == "array" and value_type.of:
        return _or_text(array_converter(converter(value_type.of), value_type.delimiter))
    if value_type.kind == "domain" and value_type.of:
        return converter(value_type.of)
    return _CONVERTERS.get(value_type.oid, row_json.string)


def verbatim(text: bytes) -> bytes:
    """Return an integer's text, which is already JSON. A caller may omit this call."""
    return text


class _Booleans(dict[bytes, bytes]):
    def __missing__(self, text: bytes) -> bytes:
        return row_json.string(text)


def _float(text: bytes) -> bytes:
    if text[-1:].isdigit():  # and not the last letter of NaN, Infinity and -Infinity
        return text
    return _quoted(text)


def _quoted(text: bytes) -> bytes:
    """Return text that needs no escapes as JSON."""
    return b'"%b"' % text


# The next functions first check for the one or two usual lengths. A date before Christ ends with " BC",
# and in a year after 9999 the space is at another index: neither looks like the plain form.


def _timestamp(text: bytes) -> bytes:
    """`2026-11-22 10:00:00.5`; the fraction is absent or six digits, as Python's `isoformat` has it."""
    length = len(text)
    if (length == 26 or length == 19) and text[10] == 32 and text[-1] <= 57:  # noqa: PLR1714 - the faster way
        return b'"%b"' % text.replace(b" ", b"T")
    match = _TIMESTAMP(text)
    return b'"%bT%b%b"' % (match[1], match[2], _microseconds(match[3])) if match else _quoted(text)


def _timestamptz(text: bytes) -> bytes:
    """`2026-11-22 10:00:00.5+00`: the session is in UTC."""
    length = len(text)
    if (length == 29 or length == 22) and text[10] == 32 and text[-3] == 43:  # noqa: PLR1714 - the faster way
        return b'"%b:00"' % text.replace(b" ", b"T")
    match = _TIMESTAMPTZ(text)
    return b'"%bT%b%b+00:00"' % (match[1], match[2], _microseconds(match[3])) if match else _quoted(text)


def _time(text: bytes) -> bytes:
    """`10:00:00.5`."""
    if len(text) == 8:
        return b'"%b"' % text
    match = _TIME(text)
    return b'"%b%b"' % (match[1], _microseconds(match[2])) if match else _quoted(text)


def _timetz(text: bytes) -> bytes:
    """`10:00:00.5+02`, `10:00:00+05:30`: the offset is the value's own."""
    match = _TIMETZ(text)
    if not match:
        return _quoted(text)
    return b'"%b%b%b%b"' % (match[1], _microseconds(match[2]), match[3], match[4] or b":00")


def _microseconds(fraction: bytes | None) -> bytes:
    return fraction.ljust(7, b"0") if fraction else b""


_TIMESTAMP = re.compile(rb"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d)(\.\d+)?").fullmatch
_TIMESTAMPTZ = re.compile(rb"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d)(\.\d+)?\+00").fullmatch
_TIME = re.compile(rb"(\d\d:\d\d:\d\d)(\.\d+)?").fullmatch
_TIMETZ = re.compile(rb"(\d\d:\d\d:\d\d)(\.\d+)?([+-]\d\d)(:\d\d(?::\d\d)?)?").fullmatch


def _bytea(text: bytes) -> bytes:
    if not text.startswith(b"\\x"):
        raise ValueError("not the hex form")
    return b'"%b"' % b64encode(unhexlify(text[2:]))


def _or_text(convert: Convert) -> Convert:
    """Return `convert` with a fallback: the server's text."""

    def convert_or_text(text: bytes) -> bytes:
        try:
            return convert(text)
        except Exception:  # noqa: BLE001 - one odd value must not stop the stream
            return row_json.string(text)

    return convert_or_text


_CONVERTERS: dict[int, Convert] = {
    16: _Booleans({b"t": b"true", b"f": b"false"}).__getitem__,
    17: _or_text(_bytea),
    20: verbatim,  # int8
    21: verbatim,  # int2
    23: verbatim,  # int4
    26: verbatim,  # oid
    114: row_json.document,
    700: _float,
    701: _float,
    1082: _quoted,  # date
    1083: _time,
    1114: _timestamp,
    1184: _timestamptz,
    1266: _timetz,
    1700: _quoted,  # numeric
    2950: _quoted,  # uuid
    3802: row_json.document,  # jsonb
}


# --- Arrays ---------------------------------------------------------------------------------------------

_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)


_MARKS = {b"{": b"[", b"}": b"]"}


def array_converter(element: Callable[[bytes], bytes], delimiter: bytes) -> Callable[[bytes], bytes]:
    """Return the converter of arrays whose elements `element` converts; it raises ValueError if it is not an array."""
    special = re.escape(delimiter)
    # The three groups: an element in its quotes, a plain one, a mark.
    find_tokens = re.compile(
        rb'("[^"\\]*+(?:\\.[^"\\]*+)*+")|([^{}"%b]+)|([{}%b])' % (special, special), re.DOTALL
    ).findall

    def convert(text: bytes) -> bytes:
        if text.startswith(b"["):
            text = text[text.index(b"=") + 1 :]  # JSON has no bounds
        if not (text.startswith(b"{") and text.endswith(b"}")):
            raise ValueError("not an array")
        if b'"' in text or b"{" in text[1:]:
            return b"".join([convert_token(*token) for token in find_tokens(text)])
        if text == b"{}":
            return b"[]"
        return b"[%b]" % b",".join(map(convert_plain, text[1:-1].split(delimiter)))

    def convert_token(quoted: bytes, plain: bytes, mark: bytes) -> bytes:
        if mark:
            return _MARKS.get(mark, b",")
        if plain:
            return convert_plain(plain)
        return element(_ESCAPE.sub(rb"\1", quoted[1:-1]) if b"\\" in quoted else quoted[1:-1])

    def convert_plain(text: bytes) -> bytes:
        return b"null" if text == b"NULL" else element(text)

    return convert
