"""The context of a transaction: who made it, in which request. `cdc_tasks.context` writes it, or plain SQL.

In the log it is JSON: `{"context": {"user_id": 7}}`. Each change and each task of the transaction carries it. So it
is small, and its values are JSON scalars.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Any, Final

import orjson

from cdc_tasks.changes import Context
from cdc_tasks.errors import CDCError

__all__ = ["CONTEXT", "CONTEXT_HEADER", "LARGEST", "ContextError", "check_context", "merged"]

CONTEXT: Final = "context"  # the name of the values in a message
CONTEXT_HEADER: Final = "cdc_context"  # of a task's message: an object

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,63}")
LARGEST: Final = 2_000  # bytes of JSON: each message carries it
_LARGEST_INTEGER: Final = 1 << 63  # a header on RabbitMQ has 64 bits


class ContextError(CDCError):
    """The values that a transaction gives do not make a context."""


def merged(before: Context | None, said: Any) -> Context:
    """Return the context with the values of `said` added: they replace earlier ones. Raises ContextError."""
    _check(said)
    values = said if before is None else {**before.values, **said}
    content = orjson.dumps(values)
    if len(content) > LARGEST:
        raise ContextError(
            f"The context would have {len(content)} bytes; the limit is {LARGEST}, because each message carries it.",
            hint="Pass ids, and read the rest where you need it.",
            code="context_too_large",
        )
    return Context(values, content)


def check_context(said: Any) -> None:
    """Raise ContextError unless these are valid names with JSON scalars, and not too many."""
    merged(None, said)


def _check(said: Any) -> None:
    if not isinstance(said, dict) or not said:
        raise ContextError(
            "The context has no values.", hint="cdc_tasks.context(session, user_id=7)", code="context_empty"
        )
    for name, value in said.items():
        if not _is_name(name):
            raise ContextError(
                f"{str(name)[:80]!r} is not a valid name for a value of the context.",
                hint="A name has up to 64 of A-Z, a-z, 0-9, _, - and dots, and begins with a letter or _.",
                code="context_name",
            )
        if not ((value.__class__ is str and value.isascii()) or _is_scalar(value)):
            raise ContextError(  # without the value: it may be personal
                f"{name} of the context is not a JSON scalar: {_described(value)}.",
                hint=f"Pass text, a number, a bool or None, e.g. {name}=str(…).",
                code="context_value",
            )


@lru_cache(maxsize=1_000)
def _is_name(name: Any) -> bool:
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def _is_scalar(value: Any) -> bool:
    kind = type(value)
    if kind is str:
        return not any("\ud800" <= letter <= "\udfff" for letter in value)
    if kind is int:
        return bool(-_LARGEST_INTEGER <= value < _LARGEST_INTEGER)
    if kind is float:
        return math.isfinite(value)
    return kind is bool or value is None


def _described(value: Any) -> str:
    if type(value) is float:
        return "a number that is not finite"
    if type(value) is int:
        return "an integer of more than 64 bits"
    if type(value) is str:
        return "a text with half of a surrogate pair"
    return type(value).__name__
