"""The database's password, where DATABASE_URL names a command or a function that gives it."""

from __future__ import annotations

from cdc_tasks.passwords import PasswordError, split_url
from listener.core.source import SourceError, SourceLostError

__all__ = ["password_now"]


def password_now(url: str) -> str | None:
    """Return the password that is valid now; None if the URL names no command and no function.

    Raises SourceLostError if it may be there later, and SourceError.
    """
    _, source = split_url(url)
    try:
        return None if source is None else source.password()
    except PasswordError as error:
        kind = SourceLostError if error.may_pass else SourceError
        raise kind(error.message, hint=error.hint, code="password") from error
