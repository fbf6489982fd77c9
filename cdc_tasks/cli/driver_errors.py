"""Hints for driver errors that end a command: in a shell nothing retries."""

from __future__ import annotations

import sys
from typing import Final

from cdc_tasks.errors import CDCError

__all__ = ["explain"]

_AWAY: Final = "Start it, or correct {}."


def explain(error: Exception) -> CDCError | None:
    """Return the error with the variable that names the server; None if it is not a driver's error."""
    text = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
    if _is(error, "kombu.exceptions", "OperationalError"):
        return CDCError(
            f"The broker did not answer: {text}", hint=_AWAY.format("CELERY_BROKER_URL"), code="broker_away"
        )
    if _is(error, "redis", "RedisError"):
        return CDCError(
            f"Redis refused: {text}", hint="See CELERY_BROKER_URL and CACHE_URL.", code="redis_refused"
        )
    if _is(error, "sqlalchemy.exc", "OperationalError"):
        return CDCError(
            f"The database did not answer: {text}", hint=_AWAY.format("DATABASE_URL"), code="database_away"
        )
    if _is(error, "sqlalchemy.exc", "DBAPIError"):
        return CDCError(
            f"The database refused: {text}", hint="Is DATABASE_URL right?", code="database_refused"
        )
    return None


def _is(error: Exception, module: str, name: str) -> bool:
    """Return whether the error is this class of a library that may not be installed."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(error, getattr(loaded, name))
