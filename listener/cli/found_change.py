"""Find a change by its id, or by the id of a task that it fired: for `explain --id`."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from cdc_tasks.changes import Change, EventType, RowChange
from cdc_tasks.errors import CDCError
from cdc_tasks.routing.router import BinlogRouter, Route
from cdc_tasks.words import counted
from listener.cli.parked_changes import opened
from listener.control.journal.file import JournalledChange
from listener.control.recent.entries import NotedChange
from listener.control.recent.reader import Sought
from listener.control.recent.words import fate_told, table_told
from listener.core.history import History, Kept, Selection, Wanted
from listener.daemon.database_url import DatabaseType, home_schema
from listener.daemon.settings import ListenerSettings
from listener.daemon.wiring import checkpoint_store, recent_reader, replay_histories
from listener.publish.redis.connection import RedisConnection
from listener.publish.redis.set_aside import queue_and_route, set_aside_key

__all__ = ["ChangeNotFoundError", "Found", "find_change", "find_in_histories"]

_ROUTE_ID: Final = re.compile(r"-[0-9a-f]{8}$")  # after the change's id, in a task's id
_EPOCHS: Final = {
    DatabaseType.POSTGRESQL: datetime(2000, 1, 1, tzinfo=UTC),
    DatabaseType.MYSQL: datetime(1970, 1, 1, tzinfo=UTC),
}
_MICROSECOND: Final = timedelta(microseconds=1)
_PAGE: Final = 500  # messages to read from Redis at a time


class ChangeNotFoundError(CDCError):
    """No change with this id is stored anywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A change, and where it was found."""

    change: Change
    where: str
    notes: tuple[str, ...] = ()


def find_change(settings: ListenerSettings, router: BinlogRouter, change_id: str) -> Found:
    """Return the change with this id, or the one that fired the task with this id.

    Raise ChangeNotFoundError, which names the places searched.
    """
    ids = {change_id, _ROUTE_ID.sub("", change_id)}
    looked: list[str] = []
    for look in (partial(_in_histories, router), _among_parked, _in_set_aside, _among_recent):
        try:
            found, told = look(settings, ids)
        except CDCError as error:
            found, told = None, error.message
        if found is not None:
            return found
        looked.append(told)
    if settings.database_type is DatabaseType.POSTGRESQL:
        looked.append("The log: PostgreSQL does not send a change again after the listener has read it.")
    raise ChangeNotFoundError(
        f"No change {change_id} was found.\n  " + "\n  ".join(looked),
        hint="Describe it instead: python -m listener explain TABLE EVENT --before '{…}' --after '{…}'\n"
        "To keep changes from now on, set a journal: export CDC_JOURNAL=/var/lib/cdc-tasks",
    )


def find_in_histories(
    settings: ListenerSettings, router: BinlogRouter, change_id: str
) -> tuple[Found | None, str]:
    """Return the change from the journal or the binlog; if not found, None and the places searched.

    Raise CDCError if they cannot be read.
    """
    return _in_histories(router, settings, {change_id, _ROUTE_ID.sub("", change_id)})


_Look = tuple[Found | None, str]


def _in_histories(router: BinlogRouter, settings: ListenerSettings, ids: set[str]) -> _Look:
    """Search the journal, and on MySQL and MariaDB the binlog, at the time that the id contains."""
    times = [time for each in sorted(ids, key=len) if (time := _time_in(settings, each)) is not None]
    if not times:
        return None, "The journal and the log: this id contains no time."
    told = []
    for history in replay_histories(settings, _all_tables(settings, router)):
        with closing(history):
            kept = history.kept()
            for change in _committed_at(history, kept, [each for each in times if each >= kept.since]):
                if change.id in ids:
                    return _found(change, history.name), ""
        told.append(f"{history.name.capitalize()}: it begins at {kept.since:%Y-%m-%d %H:%M:%S} UTC.")
    return None, "\n  ".join(told)


def _found(change: Change, where: str) -> Found:
    is_missing = isinstance(change, JournalledChange) and change.is_unreadable
    return Found(change=change, where=where, notes=_of_row(is_missing=is_missing))


def _committed_at(history: History, kept: Kept, times: Iterable[datetime]) -> Iterator[Change]:
    """Yield the changes committed at exactly these times, to the microsecond."""
    for time in times:
        selection = Selection(since=time, until=time + _MICROSECOND)
        yield from _changes(history, Wanted(kept.id, selection, kept.end, accepts_gap=True))


def _changes(history: History, wanted: Wanted) -> Iterator[Change]:
    place, is_end = "", False
    while not is_end:
        changes, place, is_end = history.read(wanted, place, _PAGE)
        yield from changes


def _all_tables(settings: ListenerSettings, router: BinlogRouter) -> Sequence[Route]:
    """Return routes from which a binlog reader knows the tables to read, including those without a route."""
    home = home_schema(settings.database_url.get_secret_value())
    found = BinlogRouter()
    for schema in dict.fromkeys([home, *(each.schema for each in router.routes)]):
        found.register(schema, "*", EventType.ALL, "explain", even_muted=True)
    return found.routes


def _time_in(settings: ListenerSettings, change_id: str) -> datetime | None:
    """Return when the change was committed; None if the id does not contain it."""
    epoch = _EPOCHS[settings.database_type]
    try:
        return epoch + int(change_id.split("-")[-2], 16) * _MICROSECOND
    except (IndexError, ValueError, OverflowError):
        return None


def _of_row(*, is_missing: bool) -> tuple[str, ...]:
    return ("Its row could not be read, so conditions on the row may fail here.",) if is_missing else ()


def _among_parked(settings: ListenerSettings, ids: set[str]) -> _Look:
    seen = 0
    with opened(settings) as store:
        for parked in store:
            seen += 1
            if parked.id in ids or parked.change.id in ids:
                since = f"{parked.parked_at:%Y-%m-%d %H:%M:%S} UTC"
                note = f"It has been parked since {since}, for {parked.task}: {parked.error}"
                is_rowless = parked.logged is not None or parked.is_shortened or parked.arguments is not None
                return Found(
                    change=parked.change,
                    where="the parked changes",
                    notes=(note, *_of_row(is_missing=is_rowless)),
                ), ""
    return None, f"Parked changes: {counted(seen, 'change')}, but not this one."


def _in_set_aside(settings: ListenerSettings, ids: set[str]) -> _Look:
    """Search the messages that are set aside. They contain what the task gets, which may be less than the row."""
    count, wanted = 0, [each.encode() for each in ids]
    with closing(checkpoint_store(settings)) as redis:
        for name, message in _set_aside(redis, settings.cdc_name):
            count += 1
            if any(each in message for each in wanted) and (found := _read(message, ids, name)) is not None:
                return found, ""
    return None, f"Messages set aside: {counted(count, 'message')}, but none of this change."


def _set_aside(redis: RedisConnection, listener: str) -> Iterator[tuple[str, bytes]]:
    """Yield each message, with the name of its list."""
    index = set_aside_key(redis.prefixed(f"cdc:{listener}"))
    (names,) = redis.ask([("HKEYS", index)])
    for name in sorted(each.decode() for each in names):
        start = 0
        while True:
            (page,) = redis.ask([("LRANGE", f"{index}:{name}", str(start), str(start + _PAGE - 1))])
            yield from ((name, message) for message in page)
            if len(page) < _PAGE:
                break
            start += _PAGE


def _read(message: bytes, ids: set[str], name: str) -> Found | None:
    """Return the change in a message; None if it is of another change, or does not contain a whole one."""
    fields = json.loads(
        message[message.index(b"{") :]
    )  # the queue of a message with a key may come before it
    arguments: list[Any] = _arguments(fields)
    given = next((each for each in arguments if isinstance(each, Mapping) and each.get("id") in ids), None)
    queue, route = queue_and_route(name)
    why = f"its route {route} is paused" if route else "the queue is full"
    note = f"It is set aside from the queue {queue}: {why}."
    if given is None or not {"before", "after", "table"} <= given.keys():
        task = fields.get("headers", fields).get("task", "?")
        raise ChangeNotFoundError(
            f"Messages set aside: the task {task} of this change, without the row. {note}"
        )
    return Found(change=RowChange.from_message(given), where="the messages set aside", notes=(note, _SHORT))


def _among_recent(settings: ListenerSettings, ids: set[str]) -> _Look:
    """Report what a noted change fired. Its row is not stored, so it cannot be explained again."""
    with closing(recent_reader(settings)) as reader:
        page = reader.page(Sought(ids=frozenset(ids)), limit=1)
    for _, entry in page.entries:
        if isinstance(entry, NotedChange):
            return None, f"Recent changes: {_told(entry)}"
    return None, "Recent changes: not this one."


def _told(change: NotedChange) -> str:
    """Return what each of its routes did then."""
    told = [fate_told(change, each) for each in change.routes]
    lines = [f"{'fired' if e.fired else 'not'} {e.task}{': ' if e.words else ''}{e.words}" for e in told]
    head = f"{change.event.value} of {table_told(change)}, committed at {change.committed_at:%Y-%m-%d %H:%M:%S} UTC"
    return "\n    ".join([f"{head}. The row is not kept. Then, it", *(lines or ["fired nothing"])])


_SHORT: Final = "A message has the columns that its route sends, so conditions on others may fail here."


def _arguments(fields: Mapping[str, Any]) -> list[Any]:
    """Return the positional arguments of a Celery message in Redis, or of our own record for another broker."""
    if "body" not in fields:
        found: list[Any] = json.loads(f"[{fields['arguments'] or ''}]")
        return found
    body = json.loads(b64decode(fields["body"]))
    return list(body[0])
