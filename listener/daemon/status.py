"""The positions of the listener and the database."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import NamedTuple

from redis.exceptions import ResponseError

from cdc_tasks.words import counted
from listener.core.source import Saved
from listener.core.source_status import Reader, SourceStatus
from listener.core.visibility import CommitWait
from listener.publish.commit_wait_note import commit_wait_key, parse_commit_wait
from listener.publish.parked import parked_key
from listener.publish.queue_limit import Pause, pause_key
from listener.publish.redis.connection import RedisConnection
from listener.publish.redis.set_aside import queue_and_route, set_aside_key

__all__ = ["SavedPosition", "Status", "ask_saved_position", "read_saved_position"]


class SavedPosition(NamedTuple):
    """The checkpoint in the broker, and the data stored with it."""

    position: str | None
    as_of: datetime | None  # commit time of the last change before the position
    parked: int
    notes: str | None = None  # in the source's own format
    pause: Pause | None = None  # the listener waits: a queue is longer than CDC_MAX_QUEUE
    set_aside: Mapping[str, int] = MappingProxyType({})  # queue -> tasks set aside
    commit_wait: CommitWait | None = None  # the listener waits: sessions do not see a transaction yet

    @property
    def resumed(self) -> Saved | None:
        """The part that the source gets at the next start."""
        return None if self.position is None else Saved(self.position, self.notes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Everything that `python -m listener status` shows."""

    name: str
    source: SourceStatus
    saved: SavedPosition
    lag_alarm: int
    offers: tuple[str, ...] = ()  # commands that update tables after an accepted gap

    @property
    def is_healthy(self) -> bool:
        """Whether a listener reads all tables that the routes name. A lag does not count: it may end by itself."""
        source = self.source
        return source.reader is Reader.RUNNING and not (source.unseen or source.problems or source.gaps)

    def exit_status(self, *, only_reading: bool) -> int:
        """Return 1 if not `is_healthy`, 3 if there are alarms (0 with `only_reading`), else 0."""
        if not self.is_healthy:
            return 1
        return 3 if any(True for _ in self.alarms) and not only_reading else 0

    @property
    def lag_seconds(self) -> float | None:
        """The age of the oldest unpublished change, at most."""
        if not self.source.lag_bytes:
            return None if self.source.lag_bytes is None else 0.0
        if self.saved.as_of is None:
            return None
        return max(0.0, (datetime.now(UTC) - self.saved.as_of).total_seconds())

    @property
    def alarms(self) -> Iterator[str]:
        """What needs attention, as text."""
        return (text for _, text in self._alarms())

    @property
    def alarm_codes(self) -> Iterator[str]:
        """The same for programs: a stable code per alarm, in the same order."""
        return (code for code, _ in self._alarms())

    def _alarms(self) -> Iterator[tuple[str, str]]:
        source = self.source
        if source.reader is not Reader.RUNNING:
            yield "no_reader", f"no listener reads: {source.detail}"
        if (source.retained_bytes or 0) > self.lag_alarm:
            kept = f"{source.retained_bytes:,} bytes of log"
            yield "lag", f"the database keeps {kept} for us, more than CDC_LAG_ALARM"
        if source.safe_bytes is not None and source.safe_bytes < (source.retained_bytes or 0):
            more = f"after {source.safe_bytes:,} more bytes of log"
            yield "log_soon_dropped", f"{more} the database drops what it keeps for us"
        if source.unseen:
            tables = ", ".join(source.unseen)
            yield (
                "tables_unseen",
                f"changes of {tables} do not reach the listener (hint: python -m listener check)",
            )
        for problem in source.problems:
            yield "table_wrong", f"{problem} (hint: python -m listener check)"
        for gap in source.gaps:
            yield "gap", f"{gap} (to continue without: python -m listener run --accept-gap)"
        yield from self._own_alarms()

    def _own_alarms(self) -> Iterator[tuple[str, str]]:
        """Yield the alarms that do not concern the database."""
        if self.offers:
            yield (
                "rows_may_be_old",
                "a gap was accepted: bring the tables up to date, or: python -m listener backfills dismiss\n"
                + "\n".join(self.offers),
            )
        if pause := self.saved.pause:
            yield "paused", f"paused since {pause.since}: {_reason(pause)}"
        if wait := self.saved.commit_wait:
            what = f"the transaction at {wait.position} is in the log, but no session sees it yet"
            cure = "a synchronous standby, or a semi-synchronous replica, may have to confirm it"
            yield "commit_not_visible", f"waiting since {wait.since}: {what}: {cure}"
        for queue, count in self.saved.set_aside.items():
            waiting = counted(count, "task waits", "tasks wait")
            yield "set_aside", f"{waiting} beside the queue {queue}: it is full, or their route is paused"
        if self.saved.parked:
            parked = counted(self.saved.parked, "change is parked", "changes are parked")
            yield "parked", f"{parked}: python -m listener parked list"


def _reason(pause: Pause) -> str:
    limit = f"more than {pause.setting}={pause.max_queue}"
    if pause.setting == "CDC_MAX_PARKED":
        parked = counted(pause.longest_queue, "change is", "changes are")
        return f"{parked} parked, {limit}: replay or drop them, or raise {pause.setting}"
    tasks = counted(pause.longest_queue, "task")
    return f"a queue has {tasks}, {limit}: start more workers, or raise {pause.setting}"


def read_saved_position(redis: RedisConnection, name: str) -> SavedPosition:
    """Return what the broker stores under CDC_NAME, and close the connection. Raise BrokerAwayError, BrokerError."""
    try:
        return ask_saved_position(redis, name)
    finally:
        redis.close()


def ask_saved_position(redis: RedisConnection, name: str) -> SavedPosition:
    """Return what the broker stores under CDC_NAME. Raise BrokerAwayError, BrokerError."""
    prefix = redis.prefixed(f"cdc:{name}")
    answers = redis.send(
        [
            ("HMGET", f"{prefix}:checkpoint", "position", "as_of", "notes"),
            ("HLEN", parked_key(prefix)),
            ("GET", pause_key(prefix)),
            ("HGETALL", set_aside_key(prefix)),
            ("GET", commit_wait_key(prefix)),
        ]
    )
    for answer in answers:
        if isinstance(answer, ResponseError):
            raise redis.refusal(answer)
    (position, as_of, notes), parked, pause, full, wait = answers
    names = [name.decode() for name in (full if isinstance(full, dict) else full[::2])]
    counts = redis.ask([("LLEN", f"{set_aside_key(prefix)}:{name}") for name in names])
    return SavedPosition(
        position.decode() if position else None,
        datetime.fromisoformat(as_of.decode()) if as_of else None,
        parked,
        notes.decode() if notes else None,
        Pause.parse(pause) if pause else None,
        _by_queue(names, counts),
        parse_commit_wait(wait) if wait else None,
    )


def _by_queue(names: Sequence[str], counts: Sequence[int]) -> dict[str, int]:
    """Return the number of tasks set aside for each queue."""
    found: dict[str, int] = {}
    for name, count in sorted(zip(names, counts, strict=True)):
        if count:
            queue, _ = queue_and_route(name)
            found[queue] = found.get(queue, 0) + count
    return found
