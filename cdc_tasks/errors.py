"""The one base of every error of ours."""

from __future__ import annotations

import re
from inspect import getdoc
from typing import Any

__all__ = ["CDCError", "mask_secrets"]

# A password may have an @ itself, and who mistypes :// has a password all the same.
_PASSWORD_IN_URL = re.compile(r"(?P<user>\b[A-Za-z][\w+.\-]*:/{1,3}[^:/@\s]*):\S*(?=@)")
_WORD = re.compile(
    r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"
)  # where a word of a class's name begins
_PASSWORD_IN_DSN = re.compile(r"(?P<key>\bpassword\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]+)", re.IGNORECASE)


class CDCError(Exception):
    """Something in cdc-tasks failed."""

    code: str = "error"  # stable: for programs that read logs, `--json` and dead letters

    def __init_subclass__(cls, **more: Any) -> None:
        """Derive the class's code from its name: SourceLostError has the code source_lost."""
        super().__init_subclass__(**more)
        if "code" not in vars(cls):
            cls.code = _WORD.sub("_", cls.__name__.removesuffix("Error")).lower()

    def __init__(
        self, message: str | None = None, *, hint: str | None = None, code: str | None = None
    ) -> None:
        """Without `message` the class's docstring is it; `hint` is the exact command or SQL that mends it.

        `code` is one of its own, where a class stands for several errors that a program may want to tell apart.
        """
        self.message = mask_secrets(message or getdoc(type(self)) or "")
        self.hint = mask_secrets(hint) if hint else None
        self.code = code or type(self).code
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


def mask_secrets(text: str) -> str:
    """Return `text` with the passwords of URLs and of `password=…` pairs replaced by `***`."""
    return _PASSWORD_IN_DSN.sub(r"\g<key>***", _PASSWORD_IN_URL.sub(r"\g<user>:***", text))
