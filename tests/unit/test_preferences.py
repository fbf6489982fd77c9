"""Quiet hours, and kinds of messages that a user does not want."""

from __future__ import annotations

from datetime import datetime, time
from zoneinfo import ZoneInfo

import pytest

from cdc_tasks.notify.preferences import Preferences

_BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("begin", "end", "now", "hours"),
    [
        ("22:00", "07:00", "2026-11-22 21:59", 0),
        ("22:00", "07:00", "2026-11-22 22:00", 9),
        ("22:00", "07:00", "2026-11-23 06:00", 1),
        ("22:00", "07:00", "2026-11-23 07:00", 0),
        ("12:00", "13:00", "2026-11-22 12:30", 0.5),
        ("12:00", "13:00", "2026-11-22 13:30", 0),
        ("09:00", "09:00", "2026-11-22 09:00", 0),
        ("22:00", "07:00", "2026-10-24 23:00", 9),  # the clock goes back: an hour more
        ("22:00", "07:00", "2026-03-28 23:00", 7),  # the clock goes forward: an hour less
    ],
)
def test_quiet_hours_end_by_the_users_clock(begin: str, end: str, now: str, hours: float) -> None:
    preferences = Preferences(
        quiet_from=time.fromisoformat(begin), quiet_until=time.fromisoformat(end), time_zone=_BERLIN
    )
    assert preferences.quiet_seconds(datetime.fromisoformat(now).replace(tzinfo=_BERLIN)) == hours * 3600


def test_muted_kinds_and_copies_for_managers_are_independent() -> None:
    assert Preferences().reason_not_to_send("manager_new_ticket") is None
    assert Preferences(muted_kinds=frozenset({"new_ticket"})).reason_not_to_send("new_ticket")
    assert Preferences(muted_kinds=frozenset({"new_ticket"})).reason_not_to_send("manager_new_ticket") is None
    assert Preferences(manager_copies=False).reason_not_to_send("manager_ticket_updated")
    assert Preferences(manager_copies=False).reason_not_to_send("ticket_updated") is None
