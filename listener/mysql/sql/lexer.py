r"""Cut a statement into tokens by the server's own rules. Pure: bytes in, tokens out.

A statement's text is in the client's character set, and the server read it under the session's sql_mode. The log's
event has both. The end of a string depends on them, so the text cannot be read without them. The rules are those of
MySQL's manual ("Language Structure": String Literals, Schema Object Names, Comments; "Server SQL Modes") and MariaDB's
("SQL Structure": Identifier Names, String Literals, Comment Syntax, sql_mode), and what both servers do:

Blanks are space, tab, line feed, vertical tab, form feed and carriage return. In some sets of one byte a
character the no-break space is one as well (0xA0 in latin1, 0xFF in cp866).

Comments:

- `#` up to the end of the line; `--` as well, if a blank, a control character or the end of the text follows.
- `/* … */`, which does not nest. Here an optimizer hint (`/*+ … */`) is one, too.
- `/*! … */` is read as if the marks were not there, `/*!50100 … */` (five or six digits) too, and on MariaDB
  `/*M! … */` and `/*M!100100 … */`. A server executes them or not, depending on its version, which need not be
  known here: the server writes what it did not execute to the log as a plain comment (`/* 99999 … */`). Plain
  comments may be inside.

Strings are between `'`, and between `"` unless ANSI_QUOTES is on. A quote inside is doubled, or has `\` before it
unless NO_BACKSLASH_ESCAPES is on. `N'…'`, `X'…'`, `B'…'` and `_charset'…'` are a word with a string behind it.

Names are words of letters, digits, `_`, `$` and all beyond ASCII; or they are between back-quotes, between `"` with
ANSI_QUOTES, or between `[` and `]` in MariaDB's MSSQL mode. The closing quote is doubled inside; a `\` has no meaning.
A word behind a point is always a name: `shop.table` (but not in `1. SELECT`, whose point belongs to the number).
Numbers come as words: `TRUNCATE 0x1g` empties a table of that name.

Character sets: in big5, cp932, gb18030, gbk and sjis the second byte of a character may be a back-quote or a `\`, which
has no meaning there. But behind a `\` the server skips a single byte, even if that is the first of a character's two.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Final, NamedTuple

__all__ = [
    "ANSI_QUOTES",
    "MODES",
    "MSSQL",
    "NO_BACKSLASH_ESCAPES",
    "Kind",
    "Rules",
    "Token",
    "tokens",
    "unquoted",
]

# Bits of a sql_mode.
ANSI_QUOTES: Final = 0x4
MSSQL: Final = 0x400
NO_BACKSLASH_ESCAPES: Final = 0x100000
MODES: Final = ANSI_QUOTES | MSSQL | NO_BACKSLASH_ESCAPES  # what matters here

# Characters of several bytes, one of which could be mistaken for a quote or a backslash.
_WIDE: Final = {
    "big5": rb"[\xa1-\xf9][\x40-\x7e\xa1-\xfe]",
    "cp932": rb"[\x81-\x9f\xe0-\xfc][\x40-\x7e\x80-\xfc]",
    "gb18030": rb"[\x81-\xfe](?:[\x40-\x7e\x80-\xfe]|[0-9][\x81-\xfe][0-9])",
    "gbk": rb"[\x81-\xfe][\x40-\x7e\x80-\xfe]",
    "sjis": rb"[\x81-\x9f\xe0-\xfc][\x40-\x7e\x80-\xfc]",
}
_NO_BREAK_SPACES: Final = {
    **dict.fromkeys(
        (
            *("armscii8", "cp1250", "dec8", "geostd8", "greek", "hebrew"),
            *("latin1", "latin2", "latin5", "latin7"),
        ),
        rb"\xa0",
    ),
    **dict.fromkeys(("cp852", "cp866", "keybcs2"), rb"\xff"),
}
_EXECUTABLE: Final = rb"!(?:[0-9]{5,6})?+"


class Kind(Enum):
    """What a token is."""

    WORD = 1  # without quotes: a keyword, a name, a number
    NAME = 2  # between quotes, which are in `text`; or a word behind a point
    STRING = 3  # between quotes, which are in `text`
    MARK = 4  # one character
    BROKEN = 5  # the last token: a string, name or comment that does not end


class Token(NamedTuple):
    """A piece of a statement."""

    kind: Kind
    text: bytes

    @property
    def word(self) -> bytes:
        """The word in upper case; empty if it is not a word."""
        return self.text.upper() if self.kind is Kind.WORD else b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules by which a statement's text is read."""

    mariadb: bool
    sql_mode: int = 0
    charset: str = "utf8mb4"  # as the server calls it

    @property
    def is_wide(self) -> bool:
        """Whether a byte of a character could be mistaken for a quote or a backslash."""
        return self.charset in _WIDE


def tokens(text: bytes, rules: Rules) -> Iterator[Token]:
    """Yield the tokens of a statement, one by one, only as far as the caller needs.

    Never raises. Takes time in proportion to the text.
    """
    match = _pattern(
        mariadb=rules.mariadb, modes=rules.sql_mode & MODES, charset=_class_of(rules.charset)
    ).match
    at = 0
    is_executable = is_behind_point = is_number = False
    while at < len(text):
        found = match(text, at)
        if found is None:
            yield Token(Kind.BROKEN, text[at : at + 20])
            return
        at = found.end()
        group, piece = found.lastgroup, found.group()
        if group == "blank":
            continue
        if group == "opening":
            is_executable = True
        elif group == "mark" and is_executable and piece == b"*" and text[at : at + 1] == b"/":
            is_executable = False
            at += 1
        else:
            yield Token(Kind.NAME if group == "word" and is_behind_point else _KINDS[group], piece)
            is_behind_point = piece == b"." and not is_number
            is_number = piece.isdigit()


def unquoted(text: bytes, rules: Rules) -> bytes:
    """Return a name without its quotes."""
    closing = _CLOSING.get(text[:1])
    if closing is None:
        return text
    inner, doubled = text[1:-1], closing * 2
    wide = _WIDE.get(rules.charset)
    if wide is None or doubled not in inner:
        return inner.replace(doubled, closing)
    return re.sub(wide + b"|" + re.escape(doubled), lambda found: found[0].replace(doubled, closing), inner)


_CLOSING: Final = {b"`": b"`", b'"': b'"', b"[": b"]"}
_KINDS: Final[dict[str | None, Kind]] = {
    "word": Kind.WORD,
    "name": Kind.NAME,
    "string": Kind.STRING,
    "mark": Kind.MARK,
}


def _class_of(charset: str) -> str:
    """Return one name for all sets with the same rules, so that few patterns are compiled."""
    return charset if charset in _WIDE or charset in _NO_BREAK_SPACES else ""


@cache
def _pattern(*, mariadb: bool, modes: int, charset: str) -> re.Pattern[bytes]:
    """Return the pattern of one token; all its quantifiers are possessive, so that matching takes linear time."""
    wide = _WIDE.get(charset)
    blanks = rb"\x09-\x0d\x20" + _NO_BREAK_SPACES.get(charset, b"")
    names, strings = (
        [_delimited(b"`", wide)],
        [_delimited(b"'", wide, escapes=not modes & NO_BACKSLASH_ESCAPES)],
    )
    if modes & ANSI_QUOTES:
        names.append(_delimited(b'"', wide))
    else:
        strings.append(_delimited(b'"', wide, escapes=not modes & NO_BACKSLASH_ESCAPES))
    if mariadb and modes & MSSQL:
        names.append(_delimited(b"]", wide, opening=b"["))
    marker = rb"/\*(?:M)?" if mariadb else rb"/\*"
    quotes = b"'\"`" + (b"\\[" if mariadb and modes & MSSQL else b"")
    return re.compile(
        b"|".join(
            (
                rb"(?P<opening>" + marker + _EXECUTABLE + rb")",
                rb"(?P<blank>(?:["
                + blanks
                + rb"]++|\#[^\n]*+|--(?=[\x00-\x20\x7f"
                + blanks
                + rb"]|\Z)[^\n]*+"
                rb"|(?!" + marker + rb"!)/\*(?>.*?\*/))++)",
                rb"(?P<word>" + _word(wide, _NO_BREAK_SPACES.get(charset, b"")) + rb")",
                rb"(?P<name>" + b"|".join(names) + rb")",
                rb"(?P<string>" + b"|".join(strings) + rb")",
                rb"(?P<mark>(?!/\*)[^" + quotes + rb"])",
            )
        ),
        re.DOTALL,
    )


def _word(wide: bytes | None, blank: bytes) -> bytes:
    if wide:
        return rb"(?:[0-9A-Za-z_$]|" + wide + rb"|[\x80-\xff])++"
    beyond = {b"": rb"\x80-\xff", rb"\xa0": rb"\x80-\x9f\xa1-\xff", rb"\xff": rb"\x80-\xfe"}[blank]
    return rb"[0-9A-Za-z_$" + beyond + rb"]++"


def _delimited(closing: bytes, wide: bytes | None, *, opening: bytes = b"", escapes: bool = False) -> bytes:
    """Return the pattern of a name or a string; the closing quote is doubled inside."""
    end = re.escape(closing)
    special = end + (rb"\\" if escapes else b"")
    plain = rb"[^" + special + (rb"\x80-\xff" if wide else b"") + rb"]++"
    inside = [plain, end + end]
    if escapes:
        inside.append(rb"\\.")
    if wide:
        inside += [wide, rb"[\x80-\xff]"]
    return re.escape(opening or closing) + rb"(?:" + b"|".join(inside) + rb")*+" + end
