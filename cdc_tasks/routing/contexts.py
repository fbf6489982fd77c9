"""What a transaction may say of itself: who, which request. `cdc_tasks.context` writes it, or plain SQL.

In the log it is JSON: `{"context": {"user_id": 7}}`. It goes with each change and task of the transaction. So it is
small, and its values are JSON scalars.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

from cdc_tasks.changes import Context
from cdc_tasks.errors import CDCError

__all__ = ["CONTEXT", "CONTEXT_HEADER", "LARGEST", "ContextError", "check_context", "merged"]

CONTEXT: Final = "context"  # the name of the values in a message
CONTEXT_HEADER: Final = "cdc_context"  # of a task's message: an object

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,63}")
LARGEST: Final = 2_000  # bytes of JSON: each message carries it
_LARGEST_INTEGER: Final = 1 << 63  # a header on RabbitMQ has 64 bits


class ContextError(CDCError):
    """What a transaction says of itself makes no context."""


def merged(before: Context | None, said: Mapping[str, Any]) -> Context:
    """Return the context after a transaction has said this: later values replace earlier ones. Raise ContextError."""
    check_context(said)
    context = Context.of(said if before is None else {**before.values, **said})
    _check_size(context)
    return context


def check_context(said: Any) -> None:
    """Raise ContextError unless these are names with JSON scalars, and few enough."""
    if not isinstance(said, Mapping) or not said:
        raise ContextError(
            "A context has no values.", hint="context(session, user_id=7)", code="context_empty"
        )
    for name, value in said.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ContextError(
                f"{str(name)[:80]!r} is not a name for a value of a context.",
                hint="A name has up to 64 of A-Z, a-z, 0-9, _, - and dots, and begins with a letter or _.",
                code="context_name",
            )
        if not _is_scalar(value):  # without the value: it may be personal
            raise ContextError(
                f"{name} of a context is no JSON scalar: {_described(value)}.",
                hint=f"Pass text, a number, a bool or None, e.g. {name}=str(…).",
                code="context_value",
            )
    _check_size(Context.of(said))


def _check_size(context: Context) -> None:
    if len(context.json) > LARGEST:
        raise ContextError(
            f"A context would have {len(context.json)} bytes, and {LARGEST} is the limit: each message carries it.",
            hint="Pass ids, and read the rest where it is needed.",
            code="context_too_large",
        )


def _is_scalar(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return -_LARGEST_INTEGER <= value < _LARGEST_INTEGER
    if isinstance(value, str):
        return not any("\ud800" <= letter <= "\udfff" for letter in value)
    return value is None


def _described(value: Any) -> str:
    if isinstance(value, float):
        return "a number that is not finite"
    if isinstance(value, int):
        return "an integer of more than 64 bits"
    if isinstance(value, str):
        return "a text with half of a surrogate pair"
    return type(value).__name__
