"""Character sets: bytes of a text column to text.

Python's codecs do for those that it has exactly; tables of 256 characters come from the server, so that each
one is as the server has it, and what a codec refuses is decoded by the server too.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Any, Final

from listener.mysql.connection import Connection, fetch
from listener.mysql.session import Session

__all__ = ["BINARY", "Charsets", "Decode"]

Decode = Callable[[bytes], str]

BINARY: Final = "binary"
_UTF8: Final = frozenset({"utf8mb4", "utf8mb3", "utf8", "ascii"})
_CODECS: Final = {
    "ucs2": "utf-16-be",
    "utf16": "utf-16-be",
    "utf16le": "utf-16-le",
    "utf32": "utf-32-be",
    "cp932": "cp932",
    "sjis": "shift_jis",
    "ujis": "euc_jp",
    "eucjpms": "euc_jp",
    "euckr": "cp949",
    "gb2312": "gb2312",
    "gbk": "gbk",
    "gb18030": "gb18030",
    "big5": "big5",
}


class Charsets:
    """What a server calls its collations, and how to read their text."""

    def __init__(self, session: Session, connection: Connection[Any]) -> None:
        """`session` is asked when a character set is met that needs the server's help."""
        self._session = session
        self._names = _read_names(connection)
        self._decoders: dict[str, Decode] = {}

    def name(self, collation: int) -> str:
        """Return the character set of a collation, by its number; raises KeyError."""
        return self._names[collation]

    def is_utf8(self, collation: int) -> bool:
        return self._names[collation] in _UTF8

    def decoder(self, collation: int) -> Decode:
        """Return what reads text of this collation; never raises when called."""
        name = self._names[collation]
        found = self._decoders.get(name)
        if found is None:
            found = self._decoders[name] = self._make(name)
        return found

    def _make(self, name: str) -> Decode:
        if name in _UTF8:
            return _utf8
        if name in _CODECS:
            decode = codecs.getdecoder(_CODECS[name])
            return lambda text: self._with_help(decode, text, name)
        table = self._table(name)
        return lambda text: codecs.charmap_decode(text, "backslashreplace", table)[0]

    def _with_help(self, decode: Callable[..., tuple[str, int]], text: bytes, name: str) -> str:
        try:
            return decode(text)[0]
        except UnicodeDecodeError:
            ((found,),) = self._session.fetch(f"SELECT CONVERT(_binary %s USING {name})", [text])
            return found if isinstance(found, str) else text.decode(errors="backslashreplace")

    def _table(self, name: str) -> str:
        """Return the 256 characters of a character set, U+FFFE for those that it does not have."""
        query = " UNION ALL ".join(
            f"SELECT CONVERT(CONVERT(X'{byte:02X}' USING {name}) USING utf8mb4)" for byte in range(256)
        )
        characters = [row[0] for row in self._session.fetch(query)]
        return "".join(
            character if len(character) == 1 and (character != "?" or byte == ord("?")) else "\ufffe"
            for byte, character in enumerate(each or "" for each in characters)
        )


def _utf8(text: bytes) -> str:
    return text.decode(errors="backslashreplace")


def _read_names(connection: Connection[Any]) -> dict[int, str]:
    # MariaDB since 10.10 has collations for several character sets, and gives the numbers only here.
    tables = ("COLLATION_CHARACTER_SET_APPLICABILITY", "COLLATIONS")
    columns = {
        row[0]
        for row in fetch(
            connection,
            "SELECT COLUMN_NAME FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = 'information_schema'"
            " AND TABLE_NAME = %s",
            [tables[0]],
        )
    }
    table = tables[0] if "ID" in columns else tables[1]
    query = f"SELECT ID, CHARACTER_SET_NAME FROM information_schema.{table} WHERE ID IS NOT NULL"  # noqa: S608 - one of the two above
    rows = fetch(connection, query)
    return {int(number): str(name) for number, name in rows}
