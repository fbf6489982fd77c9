"""Backfills: the waiting ones, the running one, and its progress.

A backfill's definition and progress are in a Redis hash, next to the checkpoint. The progress is written in the step
that publishes a chunk: on Redis both are written, or neither. So a listener that takes over continues after the last
published chunk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from time import monotonic
from typing import Final, Self

import structlog

from cdc_tasks.changes import EventType
from cdc_tasks.errors import CDCError
from cdc_tasks.routing.router import BinlogRouter, Call, Parked, Route
from cdc_tasks.words import counted
from listener.control.commands import Command, CommandRefusedError
from listener.core.backfill import Chunk, ChunkRequest, Key
from listener.core.publisher import BrokerAwayError, BrokerError, Publisher
from listener.core.source import SourceLostError
from listener.publish.redis.connection import Command as RedisCommand
from listener.publish.redis.connection import RedisConnection

__all__ = [
    "Backfill",
    "BackfillState",
    "BackfillStore",
    "Backfills",
    "Progress",
    "chosen_routes",
]

log = structlog.get_logger()

_KEPT: Final = 100  # backfills that have ended
_AGAIN_AFTER: Final = 1.0  # seconds, after a lost connection
_LOOK_EVERY: Final = 0.2  # seconds between two checks of queues that are too full
_PARTS: Final = 4  # maximum chunks per second, if there is a rate

WAITING: Final = "waiting"
RUNNING: Final = "running"
PAUSED: Final = "paused"
DONE: Final = "done"
CANCELLED: Final = "cancelled"
FAILED: Final = "failed"
_ENDED: Final = frozenset({DONE, CANCELLED, FAILED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Backfill:
    """A requested backfill, and its state."""

    id: str
    schema: str
    table: str
    where: str | None
    routes: tuple[str, ...]  # ids of the routes that get the rows
    rate: float | None  # rows per second; None: as many as there is room for
    chunk: int  # rows
    estimate: int | None  # rows in the table at the time of the request
    who: str
    at: str
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
        return cls(**{**fields, "routes": tuple(fields["routes"])})

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The progress of a backfill: written with each chunk, in the step that publishes it."""

    last: Key | None = None  # the key up to which everything is published
    rows: int = 0  # rows sent
    left_out: int = 0  # rows that the stream sent instead
    chunks: int = 0
    started_at: str | None = None
    updated_at: str | None = None
    is_done: bool = False

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Parse the output of `to_json`. Raise TypeError, ValueError."""
        fields = json.loads(text)
        return cls(**{**fields, "last": None if fields["last"] is None else tuple(fields["last"])})

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillState:
    """A backfill and its progress."""

    backfill: Backfill
    progress: Progress

    @property
    def state(self) -> str:
        """Its state for display: waiting, running, paused, done, cancelled or failed."""
        if self.progress.is_done:
            return DONE
        if self.backfill.state == WAITING and self.progress.started_at is not None:
            return RUNNING
        return self.backfill.state

    @property
    def is_over(self) -> bool:
        return self.state in _ENDED

    @property
    def rate(self) -> float | None:
        """Rows per second since the start; None before the first chunk."""
        if self.progress.started_at is None or self.progress.updated_at is None:
            return None
        seconds = _seconds_between(self.progress.started_at, self.progress.updated_at)
        return (self.progress.rows + self.progress.left_out) / seconds if seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """The remaining time, if the estimate is right and the rate stays the same."""
        rate, estimate = self.rate, self.backfill.estimate
        if self.is_over or not rate or estimate is None:
            return None
        return max(0.0, (estimate - self.progress.rows - self.progress.left_out) / rate)


def _seconds_between(first: str, second: str) -> float:
    return (datetime.fromisoformat(second) - datetime.fromisoformat(first)).total_seconds()


class BackfillStore:
    """The backfills of one CDC_NAME, in Redis."""

    def __init__(self, redis: RedisConnection, name: str) -> None:
        """`redis` has the checkpoint; `name` is CDC_NAME."""
        self._redis = redis
        self._key = redis.prefixed(f"cdc:{name}:backfills")

    def read(self) -> list[BackfillState]:
        """Return all backfills, in the order of the requests."""
        (answer,) = self._redis.ask([("HGETALL", self._key)])
        pairs = answer.items() if isinstance(answer, dict) else zip(answer[::2], answer[1::2], strict=True)
        fields = {name.decode(): value for name, value in pairs}
        found = [
            BackfillState(
                backfill=Backfill.parse(text),
                progress=Progress.parse(fields[_progress(name)]) if _progress(name) in fields else Progress(),
            )
            for name, text in fields.items()
            if not name.endswith(_PROGRESS)
        ]
        return sorted(found, key=lambda each: (each.backfill.at, each.backfill.id))

    def write(self, backfill: Backfill) -> None:
        self._redis.ask([("HSET", self._key, backfill.id, backfill.to_json())])

    def progress_command(self, backfill: str, progress: Progress) -> RedisCommand:
        """Return the command that writes the progress, for the step of the checkpoint."""
        return ("HSET", self._key, _progress(backfill), progress.to_json())

    def forget(self, backfills: Iterable[str]) -> None:
        """Remove backfills that have ended."""
        names = [field for name in backfills for field in (name, _progress(name))]
        if names:
            self._redis.ask([("HDEL", self._key, *names)])

    def close(self) -> None:
        self._redis.close()


_PROGRESS: Final = ":progress"


def _progress(name: str) -> str:
    return f"{name}{_PROGRESS}"


class Backfills:
    """Runs one backfill after the other, a chunk at a time, between the batches of the stream."""

    def __init__(
        self,
        store: BackfillStore,
        publisher: Publisher,
        routes: Sequence[Route],
        read_chunk: Callable[[ChunkRequest], None],
        *,
        is_paused: Callable[[Iterable[str]], bool],
    ) -> None:
        """`read_chunk` is the monitor's. `is_paused` returns whether one of these routes is paused."""
        self._store = store
        self._publisher = publisher
        self._routes = routes
        self._read_chunk = read_chunk
        self._is_paused = is_paused
        self._all: dict[str, BackfillState] = {}
        self._running: str | None = None
        self._reads = BinlogRouter()  # the routes that get the rows of the running backfill
        self._targets: tuple[Route, ...] = ()
        self._asked: ChunkRequest | None = None  # the chunk that is being read
        self._asked_at = ""
        self._due_at = 0.0
        self.verbs: Mapping[str, Callable[[Command], str]] = {
            "backfill": self._add,
            "backfill_pause": self._pause,
            "backfill_resume": self._resume,
            "backfill_cancel": self._cancel,
        }

    def restore(self) -> None:
        """Load the backfills; call it before the first batch. A chunk being read is dropped."""
        found = self._store.read()
        over = [each.backfill.id for each in found if each.is_over]
        self._store.forget(over[:-_KEPT])
        self._all = {each.backfill.id: each for each in found}
        self._asked, self._due_at = None, 0.0
        self._choose()

    def look(self) -> None:
        """Request the next chunk, if there is one and it is due. Call it between two batches."""
        if self._running is not None and self._asked is None and monotonic() >= self._due_at:
            self._ask(self._all[self._running])

    def take(self, chunk: Chunk) -> tuple[Iterable[Call | Parked], Sequence[RedisCommand]]:
        """Return the tasks that the chunk fires, and the command that writes the progress: both belong to one step."""
        self._asked = None
        current = self._all.get(chunk.request.backfill)
        if current is None or current.backfill.id != self._running:
            return (), ()  # paused or cancelled meanwhile
        if chunk.error is not None:
            self._failed(current.backfill, chunk.error)
            return (), ()
        if chunk.is_torn:
            log.info("backfill_chunk_again", backfill=current.backfill.id)
            return (), ()
        progress = _advanced(current.progress, chunk, self._asked_at)
        self._all[current.backfill.id] = replace(current, progress=progress)
        fired = self._reads.tasks_for(chunk.rows)
        if progress.is_done:
            log.info(
                "backfill_done", backfill=current.backfill.id, rows=progress.rows, left_out=progress.left_out
            )
            self._choose()
        elif monotonic() >= self._due_at:  # it is read while this one is published
            self._ask(self._all[current.backfill.id], unsent=len(chunk.rows))
        return fired, [self._store.progress_command(current.backfill.id, progress)]

    def close(self) -> None:
        self._store.close()

    # --- The running backfill ----------------------------------------------------------------------------

    def _choose(self) -> None:
        """Find the next backfill: the first that is neither ended nor paused."""
        before = self._running
        waiting = (each for each in self._all.values() if each.state in {WAITING, RUNNING})
        current = next(waiting, None)
        self._running = None if current is None else current.backfill.id
        if current is None or self._running == before:
            return
        targets = {route.id: route for route in self._routes}
        missing = [route for route in current.backfill.routes if route not in targets]
        if missing:
            self._failed(current.backfill, _no_route_any_more(missing))
            return
        self._targets = tuple(targets[route] for route in current.backfill.routes)
        self._reads = BinlogRouter().for_reads(self._targets)
        log.info(
            "backfill_running",
            backfill=current.backfill.id,
            table=f"{current.backfill.schema}.{current.backfill.table}",
            rows=current.progress.rows,
        )

    def _ask(self, current: BackfillState, *, unsent: int = 0) -> None:
        """Request the next chunk, if there is room; `unsent` earlier rows are not in their queues yet."""
        backfill, now = current.backfill, monotonic()
        if self._is_paused(backfill.routes):
            self._due_at = now + _LOOK_EVERY
            return
        kind = backfill.schema, backfill.table, EventType.READ.value
        limit = self._publisher.room(self._targets, kind, _portion(backfill) + unsent) - unsent
        if limit <= 0:
            self._due_at = now + _LOOK_EVERY
            return
        if backfill.rate is not None:
            self._due_at = max(self._due_at, now - 1 / _PARTS) + limit / backfill.rate
        self._asked_at = _now()
        self._asked = ChunkRequest(
            backfill=backfill.id,
            schema=backfill.schema,
            table=backfill.table,
            where=backfill.where,
            after=current.progress.last,
            limit=limit,
        )
        try:
            self._read_chunk(self._asked)
        except CDCError as error:
            self._asked = None
            self._failed(backfill, error)

    def _failed(self, backfill: Backfill, error: CDCError) -> None:
        """Note why it cannot continue, unless the connection was lost."""
        if isinstance(error, SourceLostError):
            log.warning("backfill_waits", backfill=backfill.id, reason=error.message)
            self._due_at = monotonic() + _AGAIN_AFTER
            return
        log.error(
            "backfill_failed", backfill=backfill.id, code=error.code, error=error.message, hint=error.hint
        )
        try:
            self._note(replace(backfill, state=FAILED, error=error.message, code=error.code, hint=error.hint))
        except (BrokerAwayError, BrokerError):  # the next attempt fails too
            self._due_at = monotonic() + _AGAIN_AFTER

    def _note(self, backfill: Backfill) -> None:
        self._store.write(backfill)
        current = self._all.get(backfill.id)
        progress = Progress() if current is None else current.progress
        self._all[backfill.id] = BackfillState(backfill=backfill, progress=progress)
        self._choose()

    # --- Commands -----------------------------------------------------------------------------------------

    def _add(self, command: Command) -> str:
        wanted = command.arguments
        if command.id in self._all:  # a previous listener has already done it
            return _accepted(self._all[command.id].backfill)
        name = f"{wanted['schema']}.{wanted['table']}"
        routes = chosen_routes(self._routes, wanted["schema"], wanted["table"], wanted["routes"])
        backfill = Backfill(
            id=command.id,
            schema=wanted["schema"],
            table=wanted["table"],
            where=wanted["where"],
            routes=tuple(route.id for route in routes),
            rate=wanted["rate"],
            chunk=wanted["chunk"],
            estimate=wanted["estimate"],
            who=command.who,
            at=command.at,
        )
        log.info("backfill_accepted", backfill=backfill.id, table=name, by=command.who)
        self._note(backfill)
        return _accepted(backfill)

    def _pause(self, command: Command) -> str:
        current = self._named(command)
        self._note(replace(current.backfill, state=PAUSED))
        return (
            f"Backfill {current.backfill.id} is paused. Sent so far: {counted(current.progress.rows, 'row')}."
        )

    def _resume(self, command: Command) -> str:
        current = self._named(command, also=FAILED)
        self._note(replace(current.backfill, state=WAITING, error=None, code=None, hint=None))
        return f"Backfill {current.backfill.id} continues."

    def _cancel(self, command: Command) -> str:
        current = self._named(command)
        self._note(replace(current.backfill, state=CANCELLED))
        return f"Backfill {current.backfill.id} is cancelled. Sent before: {counted(current.progress.rows, 'row')}."

    def _named(self, command: Command, also: str = "") -> BackfillState:
        wanted = command.arguments["backfill"]
        found = [each for name, each in self._all.items() if name.startswith(wanted)]
        if len(found) != 1:
            raise CommandRefusedError(
                f"There is no backfill {wanted}." if not found else f"Several backfills begin with {wanted}.",
                hint="See them: python -m listener backfills",
                code="backfill_unknown",
            )
        if found[0].is_over and found[0].state != also:
            raise CommandRefusedError(
                f"Backfill {found[0].backfill.id} is {found[0].state}.",
                hint="Request a new one: python -m listener backfill TABLE",
                code="backfill_over",
            )
        return found[0]


def chosen_routes(routes: Sequence[Route], schema: str, table: str, names: Sequence[str]) -> list[Route]:
    """Return the routes of a table that get its rows: those with these tasks or ids, or else those that take READ.

    Raise CommandRefusedError.
    """
    watching = [route for route in routes if route.matches(schema, table)]
    if not watching:
        raise CommandRefusedError(
            f"No route watches the table {schema}.{table}.",
            hint="See them: python -m listener routes",
            code="backfill_no_route",
        )
    if not names:
        found = [route for route in watching if EventType.READ in route.events]
    else:
        found = [route for route in watching if {route.id, route.task} & set(names)]
    unknown = [name for name in names if not any(name in {route.id, route.task} for route in found)]
    if unknown or not found:
        told = f"has the task or the id {', '.join(unknown)}" if unknown else "takes EventType.READ"
        raise CommandRefusedError(
            f"No route of {schema}.{table} {told}.",
            hint="Let a route take the rows: events=[EventType.ALL, EventType.READ], then: python -m listener reload\n"
            f"Or name one: --task {watching[0].task}",
            code="backfill_no_route",
        )
    return found


def _accepted(backfill: Backfill) -> str:
    return f"Backfill {backfill.id} of {backfill.schema}.{backfill.table} is accepted."


def _no_route_any_more(missing: Sequence[str]) -> CommandRefusedError:
    return CommandRefusedError(
        f"The route {', '.join(missing)} no longer exists.",
        hint="Request the backfill again, with the current routes: python -m listener routes",
        code="backfill_no_route",
    )


def _portion(backfill: Backfill) -> int:
    """Return the maximum rows of the next chunk."""
    if backfill.rate is None:
        return backfill.chunk
    return max(1, min(backfill.chunk, int(backfill.rate / _PARTS)))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _advanced(progress: Progress, chunk: Chunk, asked_at: str) -> Progress:
    """Return the progress after the chunk is published."""
    return Progress(
        last=chunk.last,
        rows=progress.rows + len(chunk.rows),
        left_out=progress.left_out + chunk.found - len(chunk.rows),
        chunks=progress.chunks + 1,
        started_at=progress.started_at or asked_at,
        updated_at=_now(),
        is_done=chunk.is_end,
    )
