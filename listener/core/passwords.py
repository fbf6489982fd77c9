"""The database password, if DATABASE_URL names a command or function that returns it."""

from __future__ import annotations

from cdc_tasks.passwords import PasswordError, split_url
from listener.core.source import SourceError, SourceLostError

__all__ = ["password_now"]


def password_now(url: str) -> str | None:
    """Return the current password; None if the URL names no command and no function.

    Raise SourceLostError if it may be available later, and SourceError.
    """
    _, source = split_url(url)
    try:
        return None if source is None else source.password()
    except PasswordError as error:
        kind = SourceLostError if error.may_pass else SourceError
        raise kind(error.message, hint=error.hint, code="password") from error
