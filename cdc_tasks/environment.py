"""Variables of the environment that other programs read too, and their twins that only cdc-tasks reads.

`DATABASE_URL` and the like have a meaning to many programs. Each has a twin that begins with `CDC_` and goes first, so
that both can be set. This module loads nothing: an application's web process imports it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Final

from cdc_tasks.errors import CDCError
from cdc_tasks.variables import TWINS, variable

__all__ = [
    "TWINS",
    "SettingsError",
    "check_queue_prefix",
    "queue_prefix",
    "shown_context",
    "value_of",
    "variable",
]

_QUEUE_PREFIX: Final = "CDC_QUEUE_PREFIX"
_DEFAULT_PREFIX: Final = "cdc_"


class SettingsError(CDCError):
    """The environment has invalid values."""


def value_of(name: str) -> str | None:
    """Return the value of the variable or of its twin; None if neither is set, or if it is empty."""
    return os.environ.get(variable(name)) or None


def queue_prefix() -> str:
    """Return CDC_QUEUE_PREFIX; raises SettingsError."""
    prefix = os.environ.get(_QUEUE_PREFIX) or _DEFAULT_PREFIX
    try:
        return check_queue_prefix(prefix)
    except ValueError as error:
        raise SettingsError(
            f"{_QUEUE_PREFIX}={prefix!r}: {error}.",
            hint=f"Use up to 64 of a-z, A-Z, 0-9, _ and -, for example: {_QUEUE_PREFIX}={_DEFAULT_PREFIX}",
        ) from None


def shown_context(context: Any) -> dict[str, Any]:
    """Return those values of a transaction's context that CDC_CONTEXT_SHOWN names: the others may be personal."""
    named = os.environ.get("CDC_CONTEXT_SHOWN")
    if not named or not isinstance(context, Mapping):
        return {}
    return {name: context[name] for name in map(str.strip, named.split(",")) if name in context}


def check_queue_prefix(value: str) -> str:
    """Return the value; raise ValueError if names of queues cannot begin with it."""
    if "." in value:
        raise ValueError("must have no dot, since RabbitMQ's topics are words between dots")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", value):
        raise ValueError("has a character that is not allowed, or too many")
    return value
