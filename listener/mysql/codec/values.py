"""The binlog's values to JSON, in the same form as PostgreSQL's: numbers, ISO dates, decimals as strings.

A value without a form in JSON becomes the server's own text, e.g. `0000-00-00 00:00:00`. A converter gets what the
column's layout (`layout.py`) reads, and never NULL.

Sources: MySQL's "Date and Time Data Type Representation", and its `decimal.cc` and `my_time.cc`; MariaDB's
`column_compression.cc`, and its `Field_*_hires`: temporal types with a fraction, with `mysql56_temporal_format=OFF`, as
one number that counts units of the last digit.
"""

from __future__ import annotations

import ipaddress
import zlib
from binascii import b2a_base64
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import lru_cache
from struct import Struct
from struct import error as StructError  # noqa: N812 - an exception's name

import orjson

from listener.core import row_json

__all__ = [
    "UNREADABLE",
    "Convert",
    "base64",
    "bits",
    "datetime2",
    "datetime_hires",
    "datetime_old",
    "decimal",
    "decimal_size",
    "enumerated",
    "float4",
    "float8",
    "inet",
    "inflate",
    "medium",
    "members",
    "moment",
    "padded",
    "plain_date",
    "quoted",
    "time2",
    "time_hires",
    "time_old",
    "timestamp2",
    "timestamp_hires",
    "timestamp_old",
    "uncompressed",
    "uuid",
    "year",
]  # fmt: skip

Convert = Callable[..., bytes]
_Parts = tuple[int, int, int, int, int, int]  # year, month, day, hour, minute, second

UNREADABLE = (ValueError, LookupError, ArithmeticError, StructError)
"""Raised for invalid bytes."""

_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - the caller writes the zone
_DATETIME_OFFSET = 0x8000000000
_YEAR_ONE = 13 << 22
_DAYS = (0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_MOST_DIGITS = 81  # nine groups of nine; a column has at most 65
_DECIMAL_BYTES = (0, 1, 1, 2, 2, 3, 3, 4, 4, 4)
_float4 = Struct("<f").pack


def quoted(text: bytes) -> bytes:
    """Return a JSON string of text that needs no escapes."""
    return b'"%b"' % text


def base64(value: bytes) -> bytes:
    """Return a JSON string of bytes, as base64."""
    return b'"%b"' % b2a_base64(value, newline=False)


def medium(*, unsigned: bool) -> Convert:
    """Return what converts integers of three bytes."""
    return lambda value: b"%d" % int.from_bytes(value, "little", signed=not unsigned)


def float4(value: float) -> bytes:
    """Return the shortest decimal for this four-byte number."""
    wanted = _float4(value)
    for digits in (6, 7, 8):
        text = f"{value:.{digits}g}"
        if _float4(float(text)) == wanted:
            break
    else:
        text = f"{value:.9g}"
    return orjson.dumps(float(text))


def float8(value: float) -> bytes:
    """Return the number."""
    return orjson.dumps(value)


def year(value: int) -> bytes:
    """Return the year, which is stored as years since 1900."""
    return b"%d" % (value + 1900 if value else 0)


def bits(length: int) -> Convert:
    """Return what converts to a string of zeros and ones, as PostgreSQL's bit(n)."""
    return lambda value: b'"%b"' % f"{int.from_bytes(value, 'big'):0{length}b}".encode()


def decimal(precision: int, scale: int) -> Convert:
    """Return what converts a DECIMAL: groups of nine digits in four bytes; the first bit is the sign.

    A negative one has all bits inverted.
    """
    integral = precision - scale
    widths = [integral % 9] * bool(integral % 9) + [9] * (integral // 9)
    widths += [9] * (scale // 9) + [scale % 9] * bool(scale % 9)
    sizes = [_DECIMAL_BYTES[width] for width in widths]
    ends = [sum(sizes[: place + 1]) for place in range(len(sizes))]
    places = list(zip([0, *ends], ends, strict=False))
    template = b"".join(b"%%0%dd" % width for width in widths)
    size = sum(sizes)
    sign, ones = 1 << 8 * size - 1, (1 << 8 * size) - 1

    def convert(value: bytes) -> bytes:
        number = int.from_bytes(value, "big") ^ sign
        minus = b""
        if not value[0] & 0x80:
            number ^= ones
            minus = b"-"
        data = number.to_bytes(size, "big")
        digits = template % tuple([int.from_bytes(data[start:end], "big") for start, end in places])
        whole = digits[:integral].lstrip(b"0") or b"0"
        return b'"%b%b.%b"' % (minus, whole, digits[integral:]) if scale else b'"%b%b"' % (minus, whole)

    return convert


def decimal_size(precision: int, scale: int) -> int:
    """Return the size of a DECIMAL in bytes. Raise ValueError if there is no such type."""
    if not scale <= precision <= _MOST_DIGITS:
        raise ValueError(f"a DECIMAL({precision},{scale})")
    return sum(part // 9 * 4 + _DECIMAL_BYTES[part % 9] for part in (precision - scale, scale))


def plain_date(value: bytes) -> bytes:
    """Return a DATE: three bytes with 15 bits of year, 4 of month, 5 of day."""
    number = int.from_bytes(value, "little")
    return b'"%04d-%02d-%02d"' % (number >> 9, number >> 5 & 15, number & 31)


def datetime2(digits: int) -> Convert:
    """Return what converts a DATETIME, which has no zone; an invalid date becomes the server's own text."""

    def convert(value: bytes) -> bytes:
        number = int.from_bytes(value[:5], "big") - _DATETIME_OFFSET
        micro = _microseconds(value[5:], digits) if digits else 0
        day, month = number >> 17 & 31, (number >> 22) % 13
        parts = ((number >> 22) // 13, month, day, number >> 12 & 31, number >> 6 & 63, number & 63)
        if day > 28 or not (day and month) or number < _YEAR_ONE:
            return moment(parts, micro, digits)
        if micro:
            return b'"%04d-%02d-%02dT%02d:%02d:%02d.%06d"' % (*parts, micro)
        return b'"%04d-%02d-%02dT%02d:%02d:%02d"' % parts

    return convert


def moment(parts: _Parts, micro: int, digits: int) -> bytes:
    """Return a date and time in ISO form, or the server's own text of an invalid date (also 2026-02-31)."""
    if not _is_date(*parts[:3]):
        return b'"%04d-%02d-%02d %02d:%02d:%02d%b"' % (*parts, _own_fraction(micro, digits))
    if micro:
        return b'"%04d-%02d-%02dT%02d:%02d:%02d.%06d"' % (*parts, micro)
    return b'"%04d-%02d-%02dT%02d:%02d:%02d"' % parts


def _is_date(year: int, month: int, day: int) -> bool:
    return (
        year > 0
        and 1 <= month <= 12
        and 1 <= day <= (28 if month == 2 and not _is_leap(year) else _DAYS[month])
    )


def _is_leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def timestamp2(digits: int) -> Convert:
    """Return what converts a TIMESTAMP: seconds since 1970 in UTC."""
    fraction_bits = (digits + 1) // 2 * 8
    mask, unit = (1 << fraction_bits) - 1, 10 ** (6 - fraction_bits // 4)

    def convert(value: bytes) -> bytes:
        number = int.from_bytes(value, "big")
        return timestamp(number >> fraction_bits, (number & mask) * unit, digits)

    return convert


def timestamp_hires(digits: int) -> Convert:
    """Return what converts MariaDB's old format of a TIMESTAMP: seconds since 1970, then the fraction."""
    unit = int(10 ** (6 - digits))

    def convert(value: bytes) -> bytes:
        seconds, fraction = int.from_bytes(value[:4], "big"), int.from_bytes(value[4:], "big")
        return timestamp(seconds, fraction * unit, digits)

    return convert


def timestamp_old(value: int) -> bytes:
    """Return a TIMESTAMP of a table created before MySQL 5.6."""
    return timestamp(value, 0, 0)


def timestamp(seconds: int, micro: int, digits: int) -> bytes:
    """Return a TIMESTAMP; zero stands for the server's zero date."""
    if not seconds and not micro:
        return b'"0000-00-00 00:00:00%b"' % _own_fraction(0, digits)
    if micro:
        return b'"%b.%06d+00:00"' % (iso_second(seconds), micro)
    return b'"%b+00:00"' % iso_second(seconds)


@lru_cache(maxsize=4096)
def iso_second(seconds: int) -> bytes:
    """Return the date and time of a second since 1970; cached, since many rows have the same one."""
    return (_EPOCH + timedelta(seconds=seconds)).isoformat().encode()


def time2(digits: int) -> Convert:
    """Return what converts a TIME, from -838:59:59 to 838:59:59."""
    fraction_bits = (digits + 1) // 2 * 8
    offset = 0x800000 << fraction_bits
    unit = 10 ** (6 - (digits + 1) // 2 * 2)

    def convert(value: bytes) -> bytes:
        number = int.from_bytes(value, "big") - offset
        minus = b"-" if number < 0 else b""
        number = abs(number)
        micro = (number & (1 << fraction_bits) - 1) * unit
        whole = number >> fraction_bits
        parts = (minus, whole >> 12 & 1023, whole >> 6 & 63, whole & 63)
        if micro:
            return b'"%b%02d:%02d:%02d.%06d"' % (*parts, micro)
        return b'"%b%02d:%02d:%02d"' % parts

    return convert


def time_old(value: bytes) -> bytes:
    """Return a TIME of a table created before MySQL 5.6: HHMMSS as a number."""
    number = int.from_bytes(value, "little", signed=True)
    minus, number = (b"-", -number) if number < 0 else (b"", number)
    return b'"%b%02d:%02d:%02d"' % (minus, number // 10000, number // 100 % 100, number % 100)


def time_hires(digits: int) -> Convert:
    """Return what converts MariaDB's old format of a TIME: one number, counted from -839:00:00."""
    each = int(10**digits)
    zero, unit = 839 * 3600 * each, 10**6 // each

    def convert(value: bytes) -> bytes:
        number = int.from_bytes(value, "big") - zero
        minus = b"-" if number < 0 else b""
        whole, fraction = divmod(abs(number), each)
        parts: tuple[bytes, int, int, int] = (minus, whole // 3600, whole // 60 % 60, whole % 60)
        if fraction:
            return b'"%b%02d:%02d:%02d.%06d"' % (*parts, fraction * unit)
        return b'"%b%02d:%02d:%02d"' % parts

    return convert


def datetime_hires(digits: int) -> Convert:
    """Return what converts MariaDB's old format of a DATETIME: one number."""
    each = int(10**digits)
    unit = 10**6 // each

    def convert(value: bytes) -> bytes:
        seconds, fraction = divmod(int.from_bytes(value, "big"), each)
        days, clock = divmod(seconds, 24 * 3600)
        months, day = divmod(days, 32)
        year, month = divmod(months, 13)
        parts = (year, month, day, clock // 3600, clock // 60 % 60, clock % 60)
        return moment(parts, fraction * unit, digits)

    return convert


def datetime_old(value: int) -> bytes:
    """Return a DATETIME of a table created before MySQL 5.6: YYYYMMDDHHMMSS as a number."""
    date, clock = divmod(value, 1_000_000)
    year, day = divmod(date, 10_000)
    return moment((year, *divmod(day, 100), clock // 10_000, clock // 100 % 100, clock % 100), 0, 0)


def _microseconds(fraction: bytes, digits: int) -> int:
    return int.from_bytes(fraction, "big") * int(10 ** (6 - (digits + 1) // 2 * 2))


def _own_fraction(micro: int, digits: int) -> bytes:
    """Return the fraction as the server prints it, with as many digits as the column has."""
    return (b".%06d" % micro)[: digits + 1] if digits else b""


def enumerated(labels: tuple[str, ...]) -> Convert:
    """Return what converts an ENUM to its label; the number 0 is an invalid value, shown as an empty string."""
    known = [orjson.dumps(label) for label in ("", *labels)]
    return lambda value: known[value] if value < len(known) else b'"%d"' % value


def members(labels: tuple[str, ...]) -> Convert:
    """Return what converts a SET to its members as the server prints them, with commas."""

    @lru_cache(maxsize=1024)
    def convert(value: bytes) -> bytes:
        mask = int.from_bytes(value, "little")
        return orjson.dumps(",".join(label for bit, label in enumerate(labels) if mask >> bit & 1))

    return convert


def padded(size: int) -> Convert:
    """Return what converts a BINARY(n), whose trailing zeros are not in the log."""
    return lambda value: base64(value.ljust(size, b"\0"))


def uuid(value: bytes) -> bytes:
    """Return a UUID. MariaDB stores the groups in reverse order, so that UUIDs with a time sort by it."""
    data = value.ljust(16, b"\0")
    if _is_swapped(data):
        data = data[12:] + data[10:12] + data[8:10] + data[6:8] + data[:6]
    text = data.hex()
    return b'"%b"' % "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:])).encode()


def _is_swapped(data: bytes) -> bool:
    """Return whether the groups are in reverse order, by the variant; versions 6 and later are stored as they are."""
    return bool(data[6] & 0x80) and data[8] >> 4 < 6


def inet(value: bytes, *, size: int) -> bytes:
    """Return MariaDB's INET4 or INET6."""
    address = ipaddress.ip_address(value.ljust(size, b"\0"))
    mapped = getattr(address, "ipv4_mapped", None)
    return b'"%b"' % (f"::ffff:{mapped}" if mapped else str(address)).encode()


def uncompressed(convert: Convert) -> Convert:
    """Return what converts MariaDB's COMPRESSED columns: flags, length, zlib stream; or a zero and the plain value."""

    def convert_compressed(value: bytes) -> bytes:
        if not value:
            return convert(b"")
        if not value[0]:
            return convert(value[1:])
        at = 1 + (value[0] & 7)
        size = int.from_bytes(value[1:at], "big")
        return convert(inflate(value[at:], size, wbits=-15 if value[0] & 8 else 15))

    return convert_compressed


def inflate(data: bytes, size: int, *, wbits: int = 15) -> bytes:
    """Return what zlib has compressed; raises ValueError if it does not have that size."""
    unpacker = zlib.decompressobj(wbits)
    try:
        plain = unpacker.decompress(
            data, size + 1
        )  # of no more than it should be: a few bytes may become gigabytes
    except zlib.error as error:
        raise ValueError(f"something compressed that is damaged: {error}") from error
    if len(plain) != size:
        raise ValueError(f"something compressed that should be {size} bytes long, and is not")
    return plain


def text_or_document(text: bytes) -> bytes:
    """Return MariaDB's JSON: the text itself if it is a document, else a JSON string."""
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return row_json.string(text)
    return row_json.document(text)
