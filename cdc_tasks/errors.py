"""The base class of all errors of cdc-tasks."""

from __future__ import annotations

import re
from inspect import getdoc
from typing import Any

from cdc_tasks.variables import as_set

__all__ = ["CDCError", "mask_secrets"]

# A password may contain an @, and a URL with a mistyped :// has a password too.
_PASSWORD_IN_URL = re.compile(r"(?P<user>\b[A-Za-z][\w+.\-]*:/{1,3}[^:/@\s]*):\S*(?=@)")
# The start of a word in a class's name.
_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_PASSWORD_IN_DSN = re.compile(r"(?P<key>\bpassword\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]+)", re.IGNORECASE)


class CDCError(Exception):
    """Something in cdc-tasks failed."""

    code: str = "error"  # stable: for programs that read logs and `--json`

    def __init_subclass__(cls, **more: Any) -> None:
        """Derive the class's code from its name: SourceLostError has the code source_lost."""
        super().__init_subclass__(**more)
        if "code" not in vars(cls):
            cls.code = _WORD.sub("_", cls.__name__.removesuffix("Error")).lower()

    def __init__(
        self, message: str | None = None, *, hint: str | None = None, code: str | None = None
    ) -> None:
        """Without `message`, the text is the class's docstring. `hint` is the exact command or SQL that fixes it.

        Names of variables such as CELERY_BROKER_URL are replaced by the variable that was set: see `as_set`. `code`
        replaces the class's code, if programs may need to distinguish several errors of one class.
        """
        self.message = mask_secrets(as_set(message or getdoc(type(self)) or ""))
        self.hint = mask_secrets(as_set(hint)) if hint else None
        self.code = code or type(self).code
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


def mask_secrets(text: str) -> str:
    """Return `text` with the passwords of URLs and of `password=…` pairs replaced by `***`."""
    if "@" in text:  # most log lines have neither, and the patterns are slow
        text = _PASSWORD_IN_URL.sub(r"\g<user>:***", text)
    return _PASSWORD_IN_DSN.sub(r"\g<key>***", text) if "=" in text else text
