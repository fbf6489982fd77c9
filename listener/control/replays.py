"""Replays: past changes fire their routes again, while the stream continues.

They come from a history: the journal, or the server's own log (`listener.core.history`).

A replay's definition and progress are in a Redis hash next to the checkpoint. The progress is written in the step
that publishes a chunk, as with a backfill: on Redis both are written, or neither.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYetError
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from time import monotonic
from typing import Final, Self

import structlog

from cdc_tasks.changes import Change
from cdc_tasks.errors import CDCError
from cdc_tasks.routing.router import BinlogRouter, Call, Parked, Route
from cdc_tasks.words import counted
from listener.control.commands import Command, CommandRefusedError
from listener.control.journal.file import JournalError, JournalledChange
from listener.core.history import History, Kept, Part, Selection, Wanted
from listener.core.logged_change import LoggedChange
from listener.core.publisher import BrokerAwayError, BrokerError, Publisher
from listener.core.source import SourceLostError
from listener.publish.batching import batch_together
from listener.publish.redis.connection import Command as RedisCommand
from listener.publish.redis.connection import RedisConnection

__all__ = [
    "Replay",
    "ReplayProgress",
    "ReplayState",
    "ReplayStore",
    "Replays",
    "chosen_history",
    "fired_by",
    "named_replay",
    "replayed_routes",
]

log = structlog.get_logger()

_KEPT: Final = 100  # replays that have ended
_AGAIN_AFTER: Final = 1.0  # seconds
_LOOK_EVERY: Final = 0.2  # seconds between two checks of queues that are too full
_CHUNK: Final = 1_000  # changes to read at a time
_PARTS: Final = 4  # maximum chunks per second, if there is a rate

WAITING: Final = "waiting"
RUNNING: Final = "running"
PAUSED: Final = "paused"
DONE: Final = "done"
CANCELLED: Final = "cancelled"
FAILED: Final = "failed"
_ENDED: Final = frozenset({DONE, CANCELLED, FAILED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A requested replay, and its state."""

    id: str
    since: str
    until: str
    tables: tuple[str, ...]  # schema.table; none: all
    row: tuple[tuple[str, str], ...]  # columns and values; none: all rows
    routes: tuple[str, ...]  # ids of the routes that fire
    new_ids: bool
    rate: float | None  # changes per second; None: as many as there is room for
    journal: str  # the id of its history: positions are valid only there
    end: str  # the position after the last change to read
    who: str
    at: str
    source: str = "journal"  # the kind of its history
    accept_gap: bool = False  # continue after unreadable parts
    state: str = (
        WAITING  # waiting, paused, cancelled or failed; the progress shows whether it is running or done
    )
    error: str | None = None  # why it failed
    code: str | None = None
    hint: str | None = None

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Parse the output of `to_json`. Raise TypeError, ValueError."""
        fields = json.loads(text)
        lists = {name: tuple(fields[name]) for name in ("tables", "routes")}
        row = tuple((name, value) for name, value in fields["row"])
        return cls(**{**fields, **lists, "row": row, "end": str(fields["end"])})

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @property
    def selection(self) -> Selection:
        since, until = datetime.fromisoformat(self.since), datetime.fromisoformat(self.until)
        return Selection(since=since, until=until, tables=self.tables, row=self.row)

    @property
    def wanted(self) -> Wanted:
        """The request to its history."""
        return Wanted(self.journal, self.selection, self.end, accepts_gap=self.accept_gap)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayProgress:
    """The progress of a replay: written with each chunk, in the step that publishes it."""

    next: str = ""  # the position of the first unpublished change; empty: the first change
    changes: int = 0  # changes found
    tasks: int = 0  # tasks that they fired
    parked: int = 0  # changes that a route refused
    started_at: str | None = None
    updated_at: str | None = None
    is_done: bool = False

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Parse the output of `to_json`. Raise TypeError, ValueError."""
        fields = json.loads(text)
        return cls(**{**fields, "next": str(fields.get("next", ""))})

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayState:
    """A replay and its progress."""

    replay: Replay
    progress: ReplayProgress

    @property
    def state(self) -> str:
        """Its state for display: waiting, running, paused, done, cancelled or failed."""
        if self.progress.is_done:
            return DONE
        if self.replay.state == WAITING and self.progress.started_at is not None:
            return RUNNING
        return self.replay.state

    @property
    def is_over(self) -> bool:
        return self.state in _ENDED


class ReplayStore:
    """The replays of one CDC_NAME, in Redis."""

    def __init__(self, redis: RedisConnection, name: str) -> None:
        """`redis` has the checkpoint; `name` is CDC_NAME."""
        self._redis = redis
        self._key = redis.prefixed(f"cdc:{name}:replays")

    def read(self) -> list[ReplayState]:
        """Return all replays, in the order of the requests."""
        (answer,) = self._redis.ask([("HGETALL", self._key)])
        pairs = answer.items() if isinstance(answer, dict) else zip(answer[::2], answer[1::2], strict=True)
        fields = {name.decode(): value for name, value in pairs}
        found = [
            ReplayState(
                replay=Replay.parse(text),
                progress=ReplayProgress.parse(fields.get(f"{name}{_PROGRESS}", b"{}")),
            )
            for name, text in fields.items()
            if not name.endswith(_PROGRESS)
        ]
        return sorted(found, key=lambda each: (each.replay.at, each.replay.id))

    def write(self, replay: Replay) -> None:
        self._redis.ask([("HSET", self._key, replay.id, replay.to_json())])

    def progress_command(self, replay: str, progress: ReplayProgress) -> RedisCommand:
        """Return the command that writes the progress, for the step of the checkpoint."""
        return ("HSET", self._key, f"{replay}{_PROGRESS}", progress.to_json())

    def forget(self, replays: Iterable[str]) -> None:
        """Remove replays that have ended."""
        names = [field for name in replays for field in (name, f"{name}{_PROGRESS}")]
        if names:
            self._redis.ask([("HDEL", self._key, *names)])

    def close(self) -> None:
        self._redis.close()


_PROGRESS: Final = ":progress"


class Replays:
    """Runs one replay after the other, a chunk at a time, between the batches of the stream."""

    def __init__(
        self,
        store: ReplayStore,
        publisher: Publisher,
        routes: Sequence[Route],
        histories: Callable[[Sequence[Route]], Sequence[History]],
        *,
        is_paused: Callable[[Iterable[str]], bool],
    ) -> None:
        """`histories` returns those that can fire these routes, the best first, or raises CDCError.

        `is_paused` returns whether one of these routes is paused.
        """
        self._store = store
        self._publisher = publisher
        self._routes = routes
        self._histories = histories
        self._is_paused = is_paused
        self._all: dict[str, ReplayState] = {}
        self._running: str | None = None
        self._router = BinlogRouter()  # the routes of the running replay
        self._history: History | None = None  # the source of its changes
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="replay")
        self._asked: Future[Part] | None = None
        self._limit = 0  # changes requested
        self._due_at = 0.0
        self.verbs: Mapping[str, Callable[[Command], str]] = {
            "replay": self._add,
            "replay_pause": self._pause,
            "replay_resume": self._resume,
            "replay_cancel": self._cancel,
        }

    def restore(self) -> None:
        """Load the replays; call it before the first batch. A chunk being read is dropped."""
        found = self._store.read()
        over = [each.replay.id for each in found if each.is_over]
        self._store.forget(over[:-_KEPT])
        self._all = {each.replay.id: each for each in found}
        self._asked, self._due_at, self._running = None, 0.0, None
        self._choose()

    def steps(self, seconds: float) -> Iterator[tuple[list[Call | Parked], Sequence[RedisCommand]]]:
        """Yield the tasks that the next chunks fire, and the command that writes the progress, for about `seconds`.

        Each is a separate step: publish it before requesting the next. Ends immediately if there is nothing to do.
        """
        end = monotonic() + seconds
        while self._running is not None and (left := end - monotonic()) > 0:
            if self._asked is None and not self._ask(self._all[self._running]):
                return
            if (part := self._read_within(left)) is None:
                return
            yield self._take(self._all[self._running], part)

    def close(self) -> None:
        self._reader.shutdown(wait=False, cancel_futures=True)
        self._leave_history()
        self._store.close()

    # --- The running replay ------------------------------------------------------------------------------

    def _choose(self) -> None:
        """Find the next replay: the first that is neither ended nor paused."""
        before = self._running
        waiting = (each for each in self._all.values() if each.state in {WAITING, RUNNING})
        current = next(waiting, None)
        self._running = None if current is None else current.replay.id
        if current is None or self._running == before:
            return
        self._asked = None
        self._leave_history()
        try:
            routes = self._routes_of(current.replay)
            self._router = BinlogRouter().for_replay(routes, current.replay.id)
            self._history = self._history_of(current.replay, routes)
        except CDCError as error:
            self._failed(current.replay, error)
            return
        log.info(
            "replay_running",
            replay=current.replay.id,
            source=current.replay.source,
            changes=current.progress.changes,
        )

    def _leave_history(self) -> None:
        history, self._history = self._history, None
        if history is not None:
            history.close()

    def _routes_of(self, replay: Replay) -> list[Route]:
        known = {route.id: route for route in self._routes}
        missing = [route for route in replay.routes if route not in known]
        if missing:
            raise CommandRefusedError(
                f"The route {', '.join(missing)} no longer exists.",
                hint="Request the replay again, with the current routes: python -m listener routes",
                code="replay_no_route",
            )
        return [known[route] for route in replay.routes]

    def _history_of(self, replay: Replay, routes: Sequence[Route]) -> History:
        for each in self._histories(routes):
            if each.kind == replay.source:
                return each
        raise JournalError(
            "The replay began with the journal, but this listener has none.",
            hint="Set CDC_JOURNAL as before, or request the replay again.",
            code="journal_missing",
        )

    def _ask(self, current: ReplayState) -> bool:
        """Request the next chunk, if it is due and there is room; return whether it was requested."""
        replay, now = current.replay, monotonic()
        if now < self._due_at:
            return False
        if self._is_paused(replay.routes):
            self._due_at = now + _LOOK_EVERY
            return False
        limit = self._room(_CHUNK if replay.rate is None else max(1, min(_CHUNK, int(replay.rate / _PARTS))))
        if limit <= 0:
            self._due_at = now + _LOOK_EVERY
            return False
        if replay.rate is not None:
            self._due_at = max(self._due_at, now - 1 / _PARTS) + limit / replay.rate
        if self._history is None:
            return False
        self._limit = limit
        self._asked = self._reader.submit(self._history.read, replay.wanted, current.progress.next, limit)
        return True

    def _room(self, most: int) -> int:
        routes = self._router.routes
        kind = routes[0].schema, routes[0].table, "insert"
        return self._publisher.room(routes, kind, most)

    def _read_within(self, seconds: float) -> Part | None:
        """Return the requested chunk; None if it is not read yet, or cannot be read."""
        asked = self._asked
        if asked is None or self._running is None:
            return None
        try:
            part = asked.result(timeout=seconds)
        except NotYetError:
            return None
        except SourceLostError as error:
            self._asked, self._due_at = None, monotonic() + _AGAIN_AFTER
            log.warning("replay_waits", replay=self._running, reason=error.message)
            return None
        except CDCError as error:
            self._asked = None
            self._failed(self._all[self._running].replay, error)
            return None
        self._asked = None
        return part

    def _take(self, current: ReplayState, part: Part) -> tuple[list[Call | Parked], Sequence[RedisCommand]]:
        replay = current.replay
        fired = fired_by(self._router, part.changes, new_ids=replay.id if replay.new_ids else None)
        if replay.rate is not None:  # a log is read by event, and an event may have more of them
            self._due_at += max(0, len(part.changes) - self._limit) / replay.rate
        before, parked = current.progress, sum(isinstance(each, Parked) for each in fired)
        progress = ReplayProgress(
            next=part.next,
            changes=before.changes + len(part.changes),
            tasks=before.tasks + len(fired) - parked,
            parked=before.parked + parked,
            started_at=before.started_at or _now(),
            updated_at=_now(),
            is_done=part.is_end,
        )
        self._all[replay.id] = current = replace(current, progress=progress)
        if progress.is_done:
            log.info("replay_done", replay=replay.id, changes=progress.changes, tasks=progress.tasks)
            self._choose()
        elif replay.rate is None:  # it is read while this one is published
            self._ask(current)
        return fired, [self._store.progress_command(replay.id, progress)]

    def _failed(self, replay: Replay, error: CDCError) -> None:
        log.error("replay_failed", replay=replay.id, code=error.code, error=error.message, hint=error.hint)
        try:
            self._note(replace(replay, state=FAILED, error=error.message, code=error.code, hint=error.hint))
        except (BrokerAwayError, BrokerError):  # the next attempt fails too
            self._due_at = monotonic() + _AGAIN_AFTER
            self._running = None

    def _note(self, replay: Replay) -> None:
        self._store.write(replay)
        current = self._all.get(replay.id)
        progress = ReplayProgress() if current is None else current.progress
        self._all[replay.id] = ReplayState(replay=replay, progress=progress)
        self._choose()

    # --- Commands -----------------------------------------------------------------------------------------

    def _add(self, command: Command) -> str:
        wanted = command.arguments
        if command.id in self._all:  # a previous listener has already done it
            return _accepted(self._all[command.id].replay)
        routes = replayed_routes(self._routes, wanted["routes"])
        selection = Selection(
            since=datetime.fromisoformat(wanted["since"]),
            until=datetime.fromisoformat(wanted["until"]),
            tables=tuple(wanted["tables"]),
            row=tuple((name, value) for name, value in wanted["row"]),
        )
        try:
            histories = self._histories(routes)
            history, kept = chosen_history(histories, selection, accept_gap=bool(wanted["accept_gap"]))
        except (BrokerAwayError, BrokerError):  # the command waits at the head of the queue
            raise
        except CDCError as error:  # of the journal, or of the server's log
            raise CommandRefusedError(error.message, hint=error.hint, code=error.code) from error
        replay = Replay(
            id=command.id,
            since=wanted["since"],
            until=wanted["until"],
            tables=selection.tables,
            row=selection.row,
            routes=tuple(route.id for route in routes),
            new_ids=bool(wanted["new_ids"]),
            rate=wanted["rate"],
            journal=kept.id,
            end=kept.end,
            who=command.who,
            at=command.at,
            source=history.kind,
            accept_gap=bool(wanted["accept_gap"]),
        )
        log.info("replay_accepted", replay=replay.id, source=replay.source, by=command.who)
        self._note(replay)
        return _accepted(replay)

    def _pause(self, command: Command) -> str:
        current = self._named(command)
        self._note(replace(current.replay, state=PAUSED))
        return (
            f"Replay {current.replay.id} is paused. Fired so far: {counted(current.progress.tasks, 'task')}."
        )

    def _resume(self, command: Command) -> str:
        current = self._named(command, also=FAILED)
        self._note(replace(current.replay, state=WAITING, error=None, code=None, hint=None))
        return f"Replay {current.replay.id} continues."

    def _cancel(self, command: Command) -> str:
        current = self._named(command)
        self._note(replace(current.replay, state=CANCELLED))
        return f"Replay {current.replay.id} is cancelled. Fired before: {counted(current.progress.tasks, 'task')}."

    def _named(self, command: Command, also: str = "") -> ReplayState:
        found = named_replay(list(self._all.values()), command.arguments["replay"])
        if found.is_over and found.state != also:
            raise CommandRefusedError(
                f"Replay {found.replay.id} is {found.state}.",
                hint="Request a new one: python -m listener replay --since TIME --task NAME",
                code="replay_over",
            )
        return found


def named_replay(replays: Sequence[ReplayState], wanted: str) -> ReplayState:
    """Return the replay whose id begins with this text. Raise CommandRefusedError."""
    found = [each for each in replays if each.replay.id.startswith(wanted)]
    if len(found) != 1:
        raise CommandRefusedError(
            f"There is no replay {wanted}." if not found else f"Several replays begin with {wanted}.",
            hint="See them: python -m listener replays",
            code="replay_unknown",
        )
    return found[0]


def replayed_routes(routes: Sequence[Route], names: Sequence[str]) -> list[Route]:
    """Return the routes with these tasks or ids; without names, all. Raises CommandRefusedError."""
    found = [route for route in routes if not names or {route.id, route.task} & set(names)]
    unknown = [name for name in names if not any(name in {route.id, route.task} for route in found)]
    if unknown or not found:
        raise CommandRefusedError(
            f"No route has the task or the id {', '.join(unknown)}." if unknown else "There are no routes.",
            hint="See them: python -m listener routes",
            code="replay_no_route",
        )
    return found


def chosen_history(
    histories: Sequence[History], selection: Selection, *, accept_gap: bool
) -> tuple[History, Kept]:
    """Return the first history with all of the selection's time range; with `accept_gap`, the one with most of it.

    Raise CommandRefusedError if none has it, and CDCError.
    """
    found = [(history, history.kept()) for history in histories]
    for history, kept in found:
        if not kept.missing(selection):
            return history, kept
    if not accept_gap:
        raise _incomplete(found, selection)
    return min(found, key=lambda each: _missing_seconds(each[1], selection))


def _missing_seconds(kept: Kept, selection: Selection) -> float:
    return sum((each.until - each.since).total_seconds() for each in kept.missing(selection))


def _incomplete(found: Sequence[tuple[History, Kept]], selection: Selection) -> CommandRefusedError:
    """Return the error about the missing parts of the histories."""
    told = " ".join(
        f"{history.name.capitalize()} does not have all of this time. Missing: "
        + ", ".join(f"{gap.since.isoformat()} to {gap.until.isoformat()}" for gap in kept.missing(selection))
        + "."
        for history, kept in found
    )
    begins = " ".join(
        f"{history.name.capitalize()} begins at {kept.since.isoformat()}." for history, kept in found
    )
    return CommandRefusedError(
        told,
        hint=f"{begins} To replay the existing part: --accept-gap\n"
        "To send the rows as they are now: python -m listener backfill TABLE",
        code="journal_gap",
    )


def fired_by(router: BinlogRouter, changes: Sequence[Change], *, new_ids: str | None) -> list[Call | Parked]:
    """Return the tasks that these changes fire; with `new_ids`, a replay's id, the tasks get new ids.

    `coalesce` and `batch` combine only these changes, not those of the stream.
    """
    if new_ids is not None:
        changes = [_renamed(each, f"{each.id}~{new_ids}") for each in changes]
    readable = [each for each in changes if not _is_unreadable(each)]
    tasks, parked = batch_together(router.tasks_for(readable))
    lost = _unreadable(router, (each for each in changes if _is_unreadable(each)))
    return [*map(_alone, tasks), *parked, *lost]


def _renamed(change: Change, name: str) -> Change:
    if isinstance(change, JournalledChange):
        return replace(change, id=name)
    return change.with_id(name.encode()) if isinstance(change, LoggedChange) else change


def _is_unreadable(change: Change) -> bool:
    return isinstance(change, JournalledChange) and change.is_unreadable


def _alone(call: Call) -> Call:
    """Return the call in a form that the publisher sends unchanged."""
    if not call.route.is_grouped:
        return call
    return call._replace(route=replace(call.route, is_grouped=False))


def _unreadable(router: BinlogRouter, changes: Iterable[Change]) -> Iterator[Parked]:
    error = JournalError("The row could not be read when it was journalled.", code="row_not_rendered")
    return chain.from_iterable(
        (Parked(route, change, error) for route in router.routes_for(change.kind)) for change in changes
    )


def _accepted(replay: Replay) -> str:
    return f"Replay {replay.id} is accepted."


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
