"""MySQL's binary JSON to JSON, and the partial updates of it that a binlog may hold.

Source: MySQL's `json_binary.h` and `json_diff.h`. A document becomes a tree first, whose leaves are JSON text
already; a partial update changes that tree.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from struct import Struct
from typing import Any, Final

import orjson

from listener import json_text
from listener.mysql.table_map import packed_integer
from listener.mysql.values import decimal

__all__ = ["PatchedDocument", "document", "patch"]

Tree = Any  # bytes (JSON text of a scalar), list[Tree], dict[bytes, Tree] with keys as JSON text

_SMALL_OBJECT, _LARGE_OBJECT, _SMALL_ARRAY, _LARGE_ARRAY, _LITERAL = 0, 1, 2, 3, 4
_STRING, _OPAQUE = 0x0C, 0x0F
_NUMBERS: Final = {  # type -> layout, and whether a small / a large container holds it in the place of an offset
    5: (Struct("<h"), True, True),
    6: (Struct("<H"), True, True),
    7: (Struct("<i"), False, True),
    8: (Struct("<I"), False, True),
    9: (Struct("<q"), False, False),
    10: (Struct("<Q"), False, False),
    11: (Struct("<d"), False, False),
}
_LITERALS: Final = (b"null", b"true", b"false")
_DECIMALS, _TIMES, _DATES, _DATETIMES = {0, 246}, {11, 19}, {10, 14}, {7, 12, 17, 18}

_REPLACE, _INSERT, _REMOVE = 0, 1, 2
_LEG = re.compile(r'\.("(?:[^"\\]|\\.)*"|[^.\[]+)|\[(\d+)\]')


class PatchedDocument(bytes):
    """JSON text of a document that came as a partial update."""

    __slots__ = ()


def document(value: bytes) -> bytes:
    """Return the JSON of what a JSON column holds."""
    if value.__class__ is PatchedDocument:
        return value
    if not value:
        return b"null"  # what IGNORE makes of a NULL in a column that must not have one
    return json_text.document(_dump(_parse(value[0], value, 1)))


def patch(before: bytes, differences: bytes) -> PatchedDocument:
    """Return the document after a partial update; raises ValueError where a path leads nowhere."""
    tree = {b"": _parse(before[0], before, 1)}
    at = 0
    while at < len(differences):
        operation = differences[at]
        length, at = packed_integer(differences, at + 1)
        path = differences[at : at + length].decode()
        at += length
        new: Tree = None
        if operation != _REMOVE:
            length, at = packed_integer(differences, at)
            new = _parse(differences[at], differences[at : at + length], 1)
            at += length
        _apply(tree, operation, path, new)
    return PatchedDocument(json_text.document(_dump(tree[b""])))


def _apply(tree: dict[bytes, Tree], operation: int, path: str, new: Tree) -> None:
    holder: Tree = tree
    leg: Any = b""
    for match in _LEG.finditer(path, 1):  # behind the $
        holder = holder[leg]
        name, index = match.groups()
        leg = int(index) if name is None else _key(name)
        if name is not None and not isinstance(holder, dict):
            raise ValueError(path)
        if name is None and not isinstance(holder, list):
            holder = [holder]  # MySQL takes a scalar for an array of one
    if operation == _REMOVE:
        del holder[leg]
    elif operation == _INSERT and isinstance(holder, list):
        holder.insert(leg, new)
    else:
        holder[leg] = new


def _key(name: str) -> bytes:
    return orjson.dumps(orjson.loads(name) if name.startswith('"') else name)


def _dump(tree: Tree) -> bytes:
    if isinstance(tree, dict):
        return b"{%b}" % b",".join([b"%b:%b" % (key, _dump(value)) for key, value in tree.items()])
    if isinstance(tree, list):
        return b"[%b]" % b",".join(map(_dump, tree))
    text: bytes = tree
    return text


def _parse(kind: int, data: bytes, at: int) -> Tree:
    if kind <= _LARGE_ARRAY:
        return _container(kind, data, at)
    if kind == _STRING:
        length, at = _variable_length(data, at)
        return json_text.string(data[at : at + length])
    if kind == _LITERAL:
        return _LITERALS[data[at]]
    if kind == _OPAQUE:
        length, start = _variable_length(data, at + 1)
        return _opaque(data[at], data[start : start + length])
    layout, _, _ = _NUMBERS[kind]
    (number,) = layout.unpack_from(data, at)
    return orjson.dumps(number)


def _container(kind: int, data: bytes, start: int) -> Tree:
    large = kind in {_LARGE_OBJECT, _LARGE_ARRAY}
    width = 4 if large else 2

    def offset(at: int) -> int:
        return int.from_bytes(data[at : at + width], "little")

    count = offset(start)
    is_object = kind in {_SMALL_OBJECT, _LARGE_OBJECT}
    keys_at = start + 2 * width
    values_at = keys_at + count * (width + 2) * is_object
    values = []
    for place in range(values_at, values_at + count * (width + 1), width + 1):
        number = _NUMBERS.get(data[place])
        inline = data[place] == _LITERAL or bool(number and number[2 if large else 1])
        values.append(_parse(data[place], data, place + 1 if inline else start + offset(place + 1)))
    if not is_object:
        return values
    keys = []
    for place in range(keys_at, values_at, width + 2):
        key = start + offset(place)
        length = int.from_bytes(data[place + width : place + width + 2], "little")
        keys.append(json_text.string(data[key : key + length]))
    return dict(zip(keys, values, strict=True))


def _variable_length(data: bytes, at: int) -> tuple[int, int]:
    length = shift = 0
    while True:
        byte = data[at]
        length |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if byte < 0x80:
            return length, at


def _opaque(kind: int, value: bytes) -> bytes:
    """Return a value of an SQL type inside a document, as MySQL prints it."""
    if kind in _DECIMALS:
        return decimal(value[0], value[1])(value[2:])[1:-1]
    if kind in _TIMES | _DATES | _DATETIMES:
        packed = int.from_bytes(value, "little", signed=True)
        minus = b"-" if packed < 0 else b""
        whole, micro = abs(packed) >> 24, abs(packed) & 0xFFFFFF
        clock = (whole >> 6 & 63, whole & 63, micro)
        if kind in _TIMES:
            return b'"%b%02d:%02d:%02d.%06d"' % (minus, whole >> 12 & 1023, *clock)
        day = b"%04d-%02d-%02d" % ((whole >> 22) // 13, (whole >> 22) % 13, whole >> 17 & 31)
        if kind in _DATES:
            return b'"%b"' % day
        return b'"%b %02d:%02d:%02d.%06d"' % (day, whole >> 12 & 31, *clock)
    return b'"base64:type%d:%b"' % (kind, b2a_base64(value, newline=False))
