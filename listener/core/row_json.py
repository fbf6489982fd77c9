"""A server's text as JSON: what both sources need to write a value into a task's message."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

__all__ = ["document", "string"]

# What a worker's `json.loads` can take: Python refuses longer integers (`sys.set_int_max_str_digits`),
# and recurses once a level, with a limit that the worker's own calls count against.
_LONGEST_INTEGER = 4300
_DEEPEST_NESTING = 200

# Possessive, and anchored at the start of each run of digits: linear on any document.
_TOO_LONG_INTEGER = re.compile(rb"(?<![0-9])[0-9]{%d}" % (_LONGEST_INTEGER + 1))
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_ONE_KIND_OF_BRACKET = bytes.maketrans(b"{}", b"[]")
_ALL_BUT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def string(text: bytes) -> bytes:
    """Return `text` as a JSON string; a byte that is not UTF-8 becomes a backslash, `x` and two digits."""
    try:
        return orjson.dumps(text.decode())
    except UnicodeDecodeError:
        return orjson.dumps(text.decode(errors="backslashreplace"))


def document(text: bytes) -> bytes:
    """Return a JSON document as it is, or as a JSON string where a worker could not load it as it is."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return string(text)
    if len(text) > _LONGEST_INTEGER and _TOO_LONG_INTEGER.search(text) and not _loads(text):
        return string(text)
    if len(text) > _DEEPEST_NESTING and _is_nested_too_deeply(text):
        return string(text)
    if (b"__type__" in text or b"\\u00" in text) and not _loads(text):
        return string(text)
    return text


def _is_nested_too_deeply(text: bytes) -> bool:
    if text.count(b"{") + text.count(b"[") <= _DEEPEST_NESTING:
        return False
    brackets = _STRINGS.sub(b"", text).translate(_ONE_KIND_OF_BRACKET, _ALL_BUT_BRACKETS)
    for _ in range(_DEEPEST_NESTING):
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


def _loads(text: bytes) -> bool:
    try:
        json.loads(text, object_hook=_refuse_kombu_envelope)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse_kombu_envelope(value: dict[str, Any]) -> None:
    """Refuse what Kombu takes for a value of that type; not knowing the type, it refuses the message."""
    if value.keys() == {"__type__", "__value__"}:
        raise ValueError(value)
