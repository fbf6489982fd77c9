"""PostgreSQL's text of an array as a JSON list.

The form is in the manual's chapter "Arrays", section "Array Input and Output Syntax": braces nest, an
element is quoted where it is empty or has a special character, `NULL` is unquoted, and bounds other than 1
are printed in front.
"""

from __future__ import annotations

import re
from collections.abc import Callable

__all__ = ["array_converter"]

_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_MARKS = {b"{": b"[", b"}": b"]"}


def array_converter(element: Callable[[bytes], bytes], delimiter: bytes) -> Callable[[bytes], bytes]:
    """Return the converter of arrays of what `element` converts; it raises ValueError on what is no array."""
    special = re.escape(delimiter)
    # The three groups: an element in its quotes, a plain one, a mark.
    find_tokens = re.compile(
        rb'("[^"\\]*+(?:\\.[^"\\]*+)*+")|([^{}"%b]+)|([{}%b])' % (special, special), re.DOTALL
    ).findall

    def convert(text: bytes) -> bytes:
        if text.startswith(b"["):
            text = text[text.index(b"=") + 1 :]  # bounds have no place in JSON
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
