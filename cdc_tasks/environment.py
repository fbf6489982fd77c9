"""Environment variables that other programs read too, and their twins that only cdc-tasks reads.

Many programs read `DATABASE_URL` and similar variables. Each has a twin that begins with `CDC_` and takes precedence,
so that both can be set. This module loads nothing else, because an application's web process imports it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cdc_tasks.errors import CDCError
from cdc_tasks.variables import FILE, SECRETS, TWINS, is_set, set_by, variable

__all__ = [
    "TWINS",
    "SettingsError",
    "check_queue_prefix",
    "is_set",
    "queue_prefix",
    "secret_of",
    "set_by",
    "shown_context",
    "value_of",
    "variable",
]

_QUEUE_PREFIX: Final = "CDC_QUEUE_PREFIX"
_DEFAULT_PREFIX: Final = "cdc_"


class SettingsError(CDCError):
    """The environment has invalid values."""


def value_of(name: str) -> str | None:
    """Return the value of the twin or of the variable; None if neither is set, or if it is empty.

    Raises SettingsError if a file that should have it cannot be read.
    """
    chosen = variable(name)
    return secret_of(chosen) if chosen in SECRETS else os.environ.get(chosen) or None


def secret_of(name: str) -> str | None:
    """Return the value of the variable, or of the file that `NAME_FILE` names; None if neither is set.

    Line breaks at the end of a file are not part of the value. Raises SettingsError if the file has no value, or if
    both variables are set.
    """
    value, path = os.environ.get(name), os.environ.get(f"{name}{FILE}")
    if not path:
        return value or None
    if value:
        raise SettingsError(f"{name} and {name}{FILE} are both set.", hint=f"Unset one of them: unset {name}")
    return _read_secret(name, path)


def _read_secret(name: str, path: str) -> str:
    where, write = f"{name}{FILE}={path}", "Write only the value into it."
    try:
        secret = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        hint = f"It has to be a file that user {os.geteuid()} may read: ls -l {path}"
        raise SettingsError(f"{where} cannot be read: {error.strerror}.", hint=hint) from None
    except ValueError:
        raise SettingsError(f"{where} is not UTF-8 text.", hint=write) from None
    if "\0" in secret:
        raise SettingsError(f"{where} has a null byte.", hint=write)
    if not secret.strip():
        raise SettingsError(f"{where} is empty.", hint=write)
    return secret


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
    """Return the values of a transaction's context that CDC_CONTEXT_SHOWN names; the others may be personal."""
    named = os.environ.get("CDC_CONTEXT_SHOWN")
    if not named or not isinstance(context, Mapping):
        return {}
    return {name: context[name] for name in map(str.strip, named.split(",")) if name in context}


def check_queue_prefix(value: str) -> str:
    """Return the value; raise ValueError if it is not valid as a prefix of queue names."""
    if "." in value:
        raise ValueError("must not have a dot, because dots separate the words of RabbitMQ's topics")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", value):
        raise ValueError("has a character that is not allowed, or is too long")
    return value
