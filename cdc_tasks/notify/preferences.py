"""Which messages a user wants, and when."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import structlog
from sqlalchemy import select

from cdc_tasks.errors import CDCError
from cdc_tasks.notify.accounts import UnknownUserError
from cdc_tasks.notify.message import kinds
from cdc_tasks.notify.models import NotificationPreferences, User

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import tzinfo

    from sqlalchemy.orm import Session

__all__ = ["PreferenceChanges", "Preferences", "change", "of_row", "of_users"]

log = structlog.get_logger()

_MANAGER_PREFIX = "manager_"  # of the kinds that are copies for managers


class BadPreferenceError(CDCError):
    """This preference is not valid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferences:
    """The preferences of one user; by default all messages, at any time."""

    muted_kinds: frozenset[str] = frozenset()
    manager_copies: bool = True
    quiet_from: time | None = None
    quiet_until: time | None = None
    time_zone: tzinfo = UTC

    def reason_not_to_send(self, kind: str) -> str | None:
        """Return why the user gets no message of this kind, or None."""
        if kind in self.muted_kinds:
            return "the user has muted this kind"
        if kind.startswith(_MANAGER_PREFIX) and not self.manager_copies:
            return "the user wants no copies for managers"
        return None

    def quiet_seconds(self, now: datetime) -> float:
        """Return the seconds until the quiet hours end, 0 outside them. If both times are equal, there are none."""
        begin, end = self.quiet_from, self.quiet_until
        if begin is None or end is None:
            return 0
        here = now.astimezone(self.time_zone)
        clock = here.time()
        is_quiet = begin <= clock < end if begin <= end else clock >= begin or clock < end
        if not is_quiet:
            return 0
        ends = here.replace(hour=end.hour, minute=end.minute, second=end.second, microsecond=end.microsecond)
        if ends <= here:
            ends += timedelta(days=1)
        return (
            ends.astimezone(UTC) - now
        ).total_seconds()  # in UTC, because the local clock may change in between


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceChanges:
    """The preferences to change; None: no change."""

    mute: list[str] = field(default_factory=list)
    unmute: list[str] = field(default_factory=list)
    manager_copies: bool | None = None
    quiet: str | None = None  # 22:00-07:00, or none
    time_zone: str | None = None


def of_row(row: NotificationPreferences | None) -> Preferences:
    """Return the preferences of a user with this row, or without one."""
    return Preferences() if row is None else _preferences(row)


def of_users(session: Session, user_ids: Sequence[int]) -> dict[int, Preferences]:
    """Return the preferences of each of these users."""
    rows = session.scalars(
        select(NotificationPreferences).where(NotificationPreferences.user_id.in_(user_ids))
    )
    return dict.fromkeys(user_ids, Preferences()) | {row.user_id: _preferences(row) for row in rows}


def _preferences(row: NotificationPreferences) -> Preferences:
    return Preferences(
        muted_kinds=frozenset(_words(row.muted_kinds)),
        manager_copies=row.manager_copies,
        quiet_from=row.quiet_from,
        quiet_until=row.quiet_until,
        time_zone=_zone(row),
    )


def change(session: Session, email: str, changes: PreferenceChanges) -> str:
    """Store the changes, and return a summary as text. Raises UnknownUserError and BadPreferenceError."""
    user = session.scalar(select(User).where(User.email == email))
    if user is None:
        raise UnknownUserError(f"No user has the e-mail address {email}.")
    row = session.get(NotificationPreferences, user.id)
    if row is None:
        row = NotificationPreferences(user_id=user.id, muted_kinds="", manager_copies=True, time_zone="UTC")
        session.add(row)
    _apply(row, changes)
    session.commit()
    return _summary(email, row)


def _apply(row: NotificationPreferences, changes: PreferenceChanges) -> None:
    unknown = sorted({*changes.mute, *changes.unmute} - set(kinds()))
    if unknown:
        raise BadPreferenceError(f"There is no kind {unknown[0]!r}; the kinds are: {', '.join(kinds())}.")
    row.muted_kinds = ",".join(sorted({*_words(row.muted_kinds), *changes.mute} - {*changes.unmute}))
    if changes.manager_copies is not None:
        row.manager_copies = changes.manager_copies
    if changes.quiet is not None:
        row.quiet_from, row.quiet_until = _hours(changes.quiet)
    if changes.time_zone is not None:
        row.time_zone = changes.time_zone
        if _zone_named(changes.time_zone) is None:
            raise BadPreferenceError(
                f"There is no time zone {changes.time_zone!r}.", hint="such as Europe/Berlin"
            )


def _hours(text: str) -> tuple[time | None, time | None]:
    if text == "none":
        return None, None
    begin, _, end = text.partition("-")
    try:
        return time.fromisoformat(begin.strip()), time.fromisoformat(end.strip())
    except ValueError:
        raise BadPreferenceError(
            f"{text!r} are not valid hours.", hint="--quiet 22:00-07:00, or --quiet none"
        ) from None


def _summary(email: str, row: NotificationPreferences) -> str:
    quiet = f"{row.quiet_from:%H:%M} to {row.quiet_until:%H:%M} {row.time_zone}" if row.quiet_from else "none"
    return (
        f"{email}: muted: {row.muted_kinds or 'nothing'}; copies for managers: "
        f"{'yes' if row.manager_copies else 'no'}; quiet hours: {quiet}."
    )


def _zone(row: NotificationPreferences) -> tzinfo:
    found = _zone_named(row.time_zone)
    if found is None:
        log.warning("unknown_time_zone", user_id=row.user_id, time_zone=row.time_zone, taken="UTC")
    return found or UTC


def _zone_named(name: str) -> ZoneInfo | None:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # it is unknown, not a name, or a directory
        return None


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
