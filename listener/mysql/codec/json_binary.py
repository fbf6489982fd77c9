"""MySQL's binary JSON to JSON, and the partial updates of it that a binlog may hold.

Source: MySQL's `json_binary.h` and `json_diff.h`. A document first becomes a tree whose leaves are JSON text; a partial
update changes that tree. Bytes that are not a document raise ValueError or LookupError, and cost no more time or memory
than a document of that size.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from collections.abc import Callable, Mapping
from struct import Struct
from typing import Any, Final, NamedTuple

import orjson

from listener.core import row_json
from listener.mysql.codec.table_map import packed_integer
from listener.mysql.codec.values import decimal, decimal_size

__all__ = ["PatchedDocument", "document", "patch"]

Tree = Any  # bytes (JSON text of a scalar), list[Tree], dict[bytes, Tree] with keys as JSON text

_SMALL_OBJECT, _LARGE_OBJECT, _SMALL_ARRAY, _LARGE_ARRAY, _LITERAL = 0, 1, 2, 3, 4
_STRING, _OPAQUE = 0x0C, 0x0F
_NUMBERS: Final = {  # type -> layout, and whether a small / large container has it in place of an offset
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
_DEEPEST: Final = 100  # the server's limit
_LINE: Final = 76  # characters in a line of base64, as the server writes it
_LEG = re.compile(r'\.("(?:[^"\\]|\\.)*+"|[^.\["]+)|\[(\d{1,9})\]')
_PATH = re.compile(rf"\$(?:{_LEG.pattern})*+")


_Unpack = Callable[[bytes, int], tuple[Any, ...]]


class _Shape(NamedTuple):
    """The layout of containers of one size."""

    width: int  # of offsets and counts, in bytes
    size: _Unpack
    key: _Unpack  # where it is, and its length
    entry: _Unpack  # a value's type, and where it is
    scalars: Mapping[int, _Unpack]  # what is stored in place of an offset, by its type

    @classmethod
    def of(cls, width: int, code: str) -> _Shape:
        scalars = {
            kind: number.unpack_from for kind, (number, *inline) in _NUMBERS.items() if inline[width == 4]
        }
        size, key, entry = (Struct(text).unpack_from for text in (f"<{code}", f"<{code}H", f"<B{code}"))
        return cls(width, size, key, entry, scalars)


_SHAPES: Final = (_Shape.of(2, "H"), _Shape.of(4, "I"))  # small, large


class PatchedDocument(bytes):
    """The JSON text of a document after a partial update."""

    __slots__ = ()


def document(value: bytes) -> bytes:
    """Return the JSON text of a JSON column's value."""
    if value.__class__ is PatchedDocument:
        return value
    if not value:
        return b"null"  # INSERT IGNORE stores nothing for a NULL in a NOT NULL column
    return row_json.document(_dump(_Reader(value).parse(value[0], 1)))


def patch(before: bytes, differences: bytes) -> PatchedDocument:
    """Return the document after a partial update. Raise ValueError if a path does not exist."""
    tree = {b"": _Reader(before).parse(before[0], 1)}
    at = 0
    while at < len(differences):
        operation = differences[at]
        length, at = packed_integer(differences, at + 1)
        path = differences[at : at + length].decode()
        at += length
        new: Tree = None
        if operation != _REMOVE:
            length, at = packed_integer(differences, at)
            new = _Reader(differences[at : at + length]).parse(differences[at], 1)
            at += length
        _apply(tree, operation, path, new)
    return PatchedDocument(row_json.document(_dump(tree[b""])))


def _apply(tree: dict[bytes, Tree], operation: int, path: str, new: Tree) -> None:
    holder: Tree = tree
    leg: Any = b""
    if _PATH.fullmatch(path) is None:
        raise ValueError(f"the path {path}")
    for match in _LEG.finditer(path, 1):  # behind the $
        holder = holder[leg]
        name, index = match.groups()
        leg = int(index) if name is None else _key(name)
        if name is not None and not isinstance(holder, dict):
            raise ValueError(path)
        if name is None and not isinstance(holder, list):
            holder = [holder]  # to MySQL a scalar is an array of one
    if operation == _REMOVE:
        del holder[leg]
    elif operation == _INSERT and isinstance(holder, list):
        holder.insert(leg, new)
    else:
        holder[leg] = new


def _key(name: str) -> bytes:
    return orjson.dumps(orjson.loads(name) if name.startswith('"') else name)


def _dump(tree: Tree, depth: int = 0) -> bytes:
    if depth > _DEEPEST:
        raise ValueError("a document that is nested too deeply")
    if isinstance(tree, dict):
        members = [b"%b:%b" % (key, _dump(value, depth + 1)) for key, value in tree.items()]
        return b"{%b}" % b",".join(members)
    if isinstance(tree, list):
        return b"[%b]" % b",".join([_dump(value, depth + 1) for value in tree])
    text: bytes = tree
    return text


class _Reader:
    """Reads one document into a tree."""

    __slots__ = ("_data", "_unread")

    def __init__(self, data: bytes) -> None:
        self._data = data
        # No two values share bytes. If they might, a small document could become one of any size.
        self._unread = len(data)

    def parse(self, kind: int, at: int, depth: int = 0) -> Tree:
        """Return the value of this type that begins at `at`; raises ValueError, LookupError, struct.error."""
        if kind == _STRING:
            length, at = self._variable_length(at)
            return row_json.string(self._take(at, length))
        if kind <= _LARGE_ARRAY:
            return self._container(kind, at, depth)
        if kind == _LITERAL:
            return _LITERALS[self._data[at]]
        if kind == _OPAQUE:
            length, start = self._variable_length(at + 1)
            return _opaque(self._data[at], self._take(start, length))
        layout, _, _ = _NUMBERS[kind]
        (number,) = layout.unpack_from(self._data, at)
        return orjson.dumps(number)

    def _container(self, kind: int, start: int, depth: int) -> Tree:
        data = self._data
        shape = _SHAPES[kind in {_LARGE_OBJECT, _LARGE_ARRAY}]
        (count,) = shape.size(data, start)
        self._count(count)
        if depth >= _DEEPEST:
            raise ValueError("a document that is nested too deeply")
        is_object = kind in {_SMALL_OBJECT, _LARGE_OBJECT}
        keys_at = start + 2 * shape.width
        values_at = keys_at + count * (shape.width + 2) * is_object
        scalars, entry, values = shape.scalars, shape.entry, []
        for place in range(values_at, values_at + count * (shape.width + 1), shape.width + 1):
            of, at = entry(data, place)
            scalar = scalars.get(of)
            if scalar is not None:
                values.append(orjson.dumps(scalar(data, place + 1)[0]))
            elif of == _LITERAL:
                values.append(_LITERALS[data[place + 1]])
            else:
                values.append(self.parse(of, start + at, depth + 1))
        if not is_object:
            return values
        return dict(zip(self._keys(start, keys_at, count, shape), values, strict=True))

    def _keys(self, start: int, first: int, count: int, shape: _Shape) -> list[bytes]:
        data, keys, key, end, unread = self._data, [], shape.key, len(self._data), self._unread
        for place in range(first, first + count * (shape.width + 2), shape.width + 2):
            at, length = key(data, place)
            at += start
            unread -= length
            if unread < 0 or at + length > end:
                raise ValueError("a document whose keys are larger than its bytes")
            keys.append(row_json.string(data[at : at + length]))
        self._unread = unread
        return keys

    def _take(self, at: int, length: int) -> bytes:
        self._unread -= length
        if self._unread < 0 or at + length > len(self._data):
            raise ValueError("a document that is cut off")
        return self._data[at : at + length]

    def _count(self, size: int) -> None:
        self._unread -= size
        if self._unread < 0:
            raise ValueError("a document that is larger than its bytes")

    def _variable_length(self, at: int) -> tuple[int, int]:
        if self._data[at] < 0x80:
            return self._data[at], at + 1
        length = shift = 0
        while shift < 35:
            byte = self._data[at]
            length |= (byte & 0x7F) << shift
            at += 1
            shift += 7
            if byte < 0x80:
                return length, at
        raise ValueError("a length of more than five bytes")


def _opaque(kind: int, value: bytes) -> bytes:
    """Return a value of an SQL type inside a document, as MySQL prints it."""
    if kind in _DECIMALS:
        if len(value) != 2 + decimal_size(value[0], value[1]):
            raise ValueError("a decimal number that is cut off")
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
    text = b2a_base64(value, newline=False)
    lines = [text[at : at + _LINE] for at in range(0, len(text), _LINE)]
    return b'"base64:type%d:%b"' % (kind, b"\\n".join(lines))
