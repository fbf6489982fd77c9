"""Times, tables and rows as a person writes them to select changes; for the commands and the console."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, time, timedelta
from typing import Final

from cdc_tasks.errors import CDCError
from listener.core.history import Selection
from listener.daemon.database_url import home_schema
from listener.daemon.settings import ListenerSettings

__all__ = ["NotATimeError", "parse_time", "selection_of", "with_schema"]

_LONGEST_CLOCK: Final = 8  # characters: 14:00:00


class NotATimeError(CDCError):
    """The text is not a time."""


def parse_time(text: str) -> datetime:
    """Return the time: `now`, a date and time, or a time of today (of yesterday if it would be in the future).

    Raise NotATimeError.
    """
    now = datetime.now(UTC)
    if text == "now":
        return now
    try:
        if "-" not in text and len(text) <= _LONGEST_CLOCK:
            local = datetime.combine(now.astimezone().date(), time.fromisoformat(text)).astimezone()
            return (local if local <= now else local - timedelta(days=1)).astimezone(UTC)
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        raise NotATimeError(
            f"{text!r} is not a time.",
            hint="Write now, 14:00, or 2026-11-26T14:00:00+01:00.",
        ) from None


def selection_of(
    settings: ListenerSettings,
    since: datetime | None,
    until: datetime | None,
    tables: Sequence[str],
    rows: Sequence[str],
) -> Selection:
    """Return the selection of changes; `rows` are values of the column id, or COLUMN=VALUE."""
    return Selection(
        since=since,
        until=until,
        tables=tuple(".".join(with_schema(settings, each)) for each in tables),
        row=tuple(_column_and_value(each) for each in rows),
    )


def with_schema(settings: ListenerSettings, table: str) -> tuple[str, str]:
    """Return the schema and name of a table; the default is the schema of the database URL."""
    schema, dot, name = table.partition(".")
    return (schema, name) if dot else (home_schema(settings.database_url.get_secret_value()), table)


def _column_and_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    return (name, value) if equals else ("id", text)
