"""How long a message is to wait, told as a number of seconds beside Celery's absolute time.

Celery's `eta` is a time of the sender's clock. A worker whose clock is behind that would wait for longer, by as much as
they differ, and hold up what waits for the message. So a worker waits for no longer than the sender said.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

__all__ = ["eta_by_this_clock", "with_countdown"]

_COUNTDOWN: Final = "cdc_countdown"  # the message header: seconds
_LONGEST: Final = 1e8  # seconds: three years


def with_countdown(headers: dict[str, Any] | None, countdown: float | None) -> dict[str, Any]:
    """Return headers with this countdown; a retry has got those of the message before, with another one."""
    kept = {name: value for name, value in (headers or {}).items() if name != _COUNTDOWN}
    return kept if countdown is None else {**kept, _COUNTDOWN: float(countdown)}


def eta_by_this_clock(headers: dict[str, Any], now: datetime) -> str | None:
    """Return when a message that has come now is due at the latest, as its `eta`; None where it is not to wait."""
    eta, countdown = headers.get("eta"), headers.get(_COUNTDOWN)
    if not isinstance(eta, str) or not isinstance(countdown, int | float) or not 0 <= countdown < _LONGEST:
        return eta
    latest = now + timedelta(seconds=countdown)
    due = datetime.fromisoformat(eta)
    due = due.replace(tzinfo=UTC) if due.tzinfo is None else due
    return eta if due <= latest else latest.isoformat()
