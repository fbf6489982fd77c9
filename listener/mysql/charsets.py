"""Character sets: decodes the bytes of a text column as the server does.

Python's codecs decode the Unicode sets. A single-byte set is a table of 256 characters, which the listener queries
once. A multi-byte set is decoded by a codec, and the listener queries the server once for all its characters:
if the server's character differs from the codec's, or the codec lacks it, the server's is used. A byte without a
character becomes a backslash, `x` and two digits; the server would show a question mark.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Final, NamedTuple

from listener.mysql.client.connection import Session

__all__ = ["BINARY", "Charsets", "Decode"]

Decode = Callable[[bytes], str]

BINARY: Final = "binary"
_UTF8: Final = frozenset({"utf8mb4", "utf8mb3", "utf8", "ascii"})
_UNICODE: Final = {"utf16": "utf-16-be", "utf16le": "utf-16-le", "utf32": "utf-32-be"}
_NONE: Final = "\ufffe"  # in tables: no character


def _bytes(*spans: tuple[int, int]) -> frozenset[int]:
    return frozenset(byte for first, last in spans for byte in range(first, last + 1))


_Form = tuple[frozenset[int], ...]  # for each byte of a character, the values that it may have


class _MultiByte(NamedTuple):
    """A character set whose characters have one byte, or several bytes in one of these forms."""

    codec: str
    forms: tuple[_Form, ...]
    computed: frozenset[int] = (
        frozenset()
    )  # first bytes of characters that are computed: the server is not asked

    def codes(self) -> Iterator[bytes]:
        """Yield the characters of several bytes for which the server is asked."""
        for first, *rest in self.forms:
            form = (first - self.computed if len(rest) == 3 else first, *rest)
            yield from map(bytes, product(*map(sorted, form)))

    def singles(self) -> Iterator[int]:
        """Yield the bytes that do not begin a character of several bytes."""
        return (byte for byte in range(256) if not any(byte in form[0] for form in self.forms))

    def size(self, text: bytes, at: int) -> int:
        """Return the length in bytes of the character at `at`; 1 for a byte that is not a character."""
        for form in self.forms:
            code = text[at : at + len(form)]
            if len(code) == len(form) and all(byte in known for byte, known in zip(code, form, strict=True)):
                return len(form)
        return 1


_EUC: Final = _bytes((0xA1, 0xFE))
_LEAD: Final = _bytes((0x81, 0xFE))
_DIGIT: Final = _bytes((0x30, 0x39))
_GBK: Final = (_LEAD, _bytes((0x40, 0x7E), (0x80, 0xFE)))
_SJIS: Final = ((_bytes((0x81, 0x9F), (0xE0, 0xFC)), _bytes((0x40, 0x7E), (0x80, 0xFC))),)
_UJIS: Final = (
    (_EUC, _EUC),
    (frozenset({0x8E}), _bytes((0xA1, 0xDF))),
    (frozenset({0x8F}), _EUC, _EUC),
)
_MULTI_BYTE: Final = {
    "big5": _MultiByte("big5", ((_bytes((0xA1, 0xF9)), _bytes((0x40, 0x7E), (0xA1, 0xFE))),)),
    "cp932": _MultiByte("cp932", _SJIS),
    "sjis": _MultiByte("shift_jis", _SJIS),
    "ujis": _MultiByte("euc_jp", _UJIS),
    "eucjpms": _MultiByte("euc_jp", _UJIS),
    "euckr": _MultiByte("cp949", ((_LEAD, _bytes((0x41, 0x5A), (0x61, 0x7A), (0x81, 0xFE))),)),
    "gb2312": _MultiByte("gb2312", ((_bytes((0xA1, 0xF7)), _EUC),)),
    "gbk": _MultiByte("gbk", (_GBK,)),
    "gb18030": _MultiByte("gb18030", (_GBK, (_LEAD, _DIGIT, _LEAD, _DIGIT)), computed=_bytes((0x85, 0xFE))),
}
_CODES_IN_QUERY: Final = 20_000


class Charsets:
    """The names of a server's collations, and how their text is decoded."""

    def __init__(self, session: Session) -> None:
        """`session` is used at once, for the names, and again for a character set that needs the server's help."""
        self._session = session
        self._names = _read_names(session)
        self._decoders: dict[str, Decode] = {}

    def name(self, collation: int) -> str:
        """Return the character set of a collation, by its number; raises KeyError."""
        return self._names[collation]

    def is_utf8(self, collation: int) -> bool:
        return self._names[collation] in _UTF8

    def decoder(self, collation: int) -> Decode:
        """Return the decoder of this collation, which never raises; raises KeyError, SourceError, SourceLostError."""
        return self.decoder_of(self._names[collation])

    def decoder_of(self, name: str) -> Decode:
        """Return the same for a character set, by its name; raises SourceError, SourceLostError."""
        found = self._decoders.get(name)
        if found is None:
            found = self._decoders[name] = self._make(name)
        return found

    def _make(self, name: str) -> Decode:
        if name in _UTF8:
            return _utf8
        if name in _UNICODE:
            return partial(_unicode, codec=_UNICODE[name])
        if name == "ucs2":
            return _ucs2
        table = self._table(name)
        if name in _MULTI_BYTE:
            charset = _MULTI_BYTE[name]
            return _MultiByteDecoder(charset, table, self._characters(name, list(charset.codes()))).decode
        return lambda text: codecs.charmap_decode(text, "backslashreplace", table)[0]

    def _table(self, name: str) -> str:
        """Return the characters of the 256 bytes; `_NONE` for a byte that is not a character."""
        query = " UNION ALL ".join(
            f"SELECT CONVERT(CONVERT(X'{byte:02X}' USING {name}) USING utf8mb4)" for byte in range(256)
        )
        characters = [row[0] for row in self._session.fetch(query)]
        return "".join(
            character if len(character) == 1 and (character != "?" or byte == ord("?")) else _NONE
            for byte, character in enumerate(each or "" for each in characters)
        )

    def _characters(self, name: str, codes: list[bytes]) -> Iterator[tuple[bytes, str]]:
        """Yield each of these codes, all longer than a byte, with its character; empty if there is none."""
        for first in range(0, len(codes), _CODES_IN_QUERY):
            asked = codes[first : first + _CODES_IN_QUERY]
            ((text,),) = self._session.fetch(f"SELECT CONVERT(_binary %s USING {name})", [b"".join(asked)])
            yield from (
                (code, "" if each == "?" else each) for code, each in zip(asked, str(text), strict=True)
            )


class _MultiByteDecoder:
    """Decodes by Python's codec, except for the characters that the server decodes otherwise."""

    def __init__(self, charset: _MultiByte, table: str, characters: Iterator[tuple[bytes, str]]) -> None:
        """`table` has the characters of one byte, `characters` all others."""
        self._charset = charset
        self._codec = codecs.getdecoder(charset.codec)
        self._own: dict[bytes, str] = {}  # the server's characters, if the codec has others; empty for none
        doubtful = set()
        singles = ((bytes((byte,)), table[byte].replace(_NONE, "")) for byte in charset.singles())
        for code, character in (*singles, *characters):
            ours = self._try(code)
            if ours != character:
                self._own[code] = character
                doubtful.add(ours)
        # What the codec makes of those codes: a text without any of it was decoded as the server does.
        self._find_doubtful = re.compile("|".join(map(re.escape, sorted(doubtful - {""}))) or r"(?!)").search

    def decode(self, text: bytes) -> str:
        """Return the text."""
        try:
            found = self._codec(text)[0]
        except UnicodeDecodeError:
            return self._decode_slowly(text)
        return self._decode_slowly(text) if self._find_doubtful(found) else found

    def _decode_slowly(self, text: bytes) -> str:
        """Return the text, decoded character by character."""
        parts, at = [], 0
        while at < len(text):
            code = text[at : at + self._charset.size(text, at)]
            character = self._own[code] if code in self._own else self._try(code)
            parts.append(character or _escaped(code))
            at += len(code)
        return "".join(parts)

    def _try(self, code: bytes) -> str:
        try:
            return self._codec(code)[0]
        except UnicodeDecodeError:
            return ""


def _escaped(code: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in code)


def _unicode(text: bytes, *, codec: str) -> str:
    return text.decode(codec, errors="backslashreplace")


def _ucs2(text: bytes) -> str:
    """Return text in UCS-2: to the server, halves of a surrogate pair are no characters, not even as a pair."""
    found = _unicode(text, codec="utf-16-be")
    if found.isascii() or max(found) < "\U00010000":
        return found
    return "".join(_unicode(text[at : at + 2], codec="utf-16-be") for at in range(0, len(text), 2))


def _utf8(text: bytes) -> str:
    return text.decode(errors="backslashreplace")


def _read_names(session: Session) -> dict[int, str]:
    # MariaDB since 10.10 has collations for several character sets: their numbers are only in the first table.
    tables = ("COLLATION_CHARACTER_SET_APPLICABILITY", "COLLATIONS")
    columns = {
        row[0]
        for row in session.fetch(
            "SELECT COLUMN_NAME FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = 'information_schema'"
            " AND TABLE_NAME = %s",
            [tables[0]],
        )
    }
    table = tables[0] if "ID" in columns else tables[1]
    query = f"SELECT ID, CHARACTER_SET_NAME FROM information_schema.{table} WHERE ID IS NOT NULL"  # noqa: S608 - one of the two above
    rows = session.fetch(query)
    return {int(number): str(name) for number, name in rows}
