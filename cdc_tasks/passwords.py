"""Passwords that expire: a command or a function returns one for each connection.

`DATABASE_URL` names it, or one of two variables, because a command is hard to write in a URL:

- `CDC_DATABASE_PASSWORD_COMMAND`, or `?password_command=…`: a program with its arguments. It prints the password.
- `CDC_DATABASE_PASSWORD_FUNCTION`, or `?password_function=module:function`: it takes nothing and returns a str.

What they print, return or raise is never logged or put into an error: it may be the password.
"""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter
from typing import Final
from urllib.parse import parse_qsl, quote

from cdc_tasks.errors import CDCError

__all__ = ["PasswordError", "PasswordSource", "split_url", "with_source"]

_COMMAND: Final = "password_command"
_FUNCTION: Final = "password_function"
_TIMEOUT: Final = 30.0  # seconds for a command


class PasswordError(CDCError):
    """The command or function for the database's password failed."""

    may_pass: bool = True  # False: only a person can fix it


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordSource:
    """Where the password comes from: a command or a function."""

    command: str = ""
    function: str = ""

    def password(self) -> str:
        """Return the current password. Raises PasswordError."""
        found = self._run() if self.command else self._call()
        if not isinstance(found, str) or not found:
            raise PasswordError(f"{self.name} returned no password.", hint=self._hint)
        return found

    @property
    def name(self) -> str:
        """The command's program, without its arguments, or the function."""
        if self.function:
            return self.function
        return (
            f"The password command {self.command.split()[0] if self.command.strip() else repr(self.command)}"
        )

    @property
    def _hint(self) -> str:
        if self.function:
            module, _, name = self.function.partition(":")
            return f"Try it: python -c 'import {module}; {module}.{name}()'"
        return "Run the command as the same user, with the same environment: it must print only the password."

    def _run(self) -> str:
        try:
            done = subprocess.run(
                shlex.split(self.command),
                check=False,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            raise PasswordError(
                f"{self.name} did not end within {_TIMEOUT:.0f} s.", hint=self._hint
            ) from None
        except (OSError, ValueError) as error:
            raise _for_good(f"{self.name} cannot be run: {type(error).__name__}.", self._hint) from None
        if done.returncode:
            raise PasswordError(f"{self.name} ended with status {done.returncode}.", hint=self._hint)
        return done.stdout.decode(errors="replace").rstrip("\r\n")

    def _call(self) -> object:
        module, _, name = self.function.partition(":")
        try:
            function = attrgetter(name)(import_module(module))
        except (ImportError, AttributeError) as error:
            hint = "Write CDC_DATABASE_PASSWORD_FUNCTION=module:function."
            raise _for_good(f"{self.function} cannot be imported: {type(error).__name__}.", hint) from None
        try:
            return function()
        except Exception as error:  # noqa: BLE001 - a user's code may raise anything, with the password in its text
            raise PasswordError(f"{self.function} raised {type(error).__name__}.", hint=self._hint) from None


def _for_good(message: str, hint: str) -> PasswordError:
    error = PasswordError(message, hint=hint)
    error.may_pass = False
    return error


def split_url(url: str) -> tuple[str, PasswordSource | None]:
    """Return the URL without the parameter that names a command or a function, and the source that it names."""
    address, mark, query = url.partition("?")
    if not mark or (_COMMAND not in query and _FUNCTION not in query):
        return url, None
    parts = query.split("&")
    own = dict(parse_qsl("&".join(each for each in parts if each.partition("=")[0] in {_COMMAND, _FUNCTION})))
    others = "&".join(each for each in parts if each.partition("=")[0] not in {_COMMAND, _FUNCTION})
    source = PasswordSource(command=own.get(_COMMAND, ""), function=own.get(_FUNCTION, ""))
    return (f"{address}?{others}" if others else address), source if own else None


def with_source(url: str, *, command: str | None, function: str | None) -> str:
    """Return the URL with the source that the two variables name, which takes precedence over that in the URL."""
    if not command and not function:
        return url
    plain, _ = split_url(url)
    name, value = (_COMMAND, command) if command else (_FUNCTION, function)
    return f"{plain}{'&' if '?' in plain else '?'}{name}={quote(value or '', safe='')}"
