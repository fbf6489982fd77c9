"""Runs commands between two batches: pause, resume, skip, reload, backfills, replays."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from difflib import get_close_matches
from time import monotonic
from typing import Any, Final, Protocol

import structlog

from cdc_tasks.errors import CDCError
from cdc_tasks.routing.router import Call, Origin, Parked, Route
from listener.control.backfills import Backfills
from listener.control.commands import Command, CommandQueue, CommandRefusedError
from listener.control.first_load import (
    LOADED,
    OFFER,
    ExistingTables,
    backfill_commands,
    first_backfills,
    now,
)
from listener.control.replays import Replays
from listener.core.publisher import BrokerAwayError, BrokerError, Publisher
from listener.core.wakeup import Wakeup
from listener.publish.redis.connection import RedisConnection

__all__ = ["Control", "ControlState", "Reloader"]

log = structlog.get_logger()

_LOOK_EVERY: Final = 0.5  # seconds
_WHILE_PAUSED: Final = 0.25  # seconds between two checks of a paused listener


class Reloader(Protocol):
    """Tries new routes and then restarts the listener with them."""

    def start(self) -> None:
        """Start to try the routes as they are now; do not wait."""

    def result(self) -> CDCError | str | None:
        """Return None while the trial runs, then an error, or a text about the routes that will be in force."""

    @property
    def is_due(self) -> bool:
        """Whether a signal or a changed file requests a reload."""

    def reload(self) -> None:
        """Stop the listener, so that it restarts with the new routes."""


class ControlState:
    """The state that survives restarts: in a Redis hash next to the checkpoint."""

    def __init__(self, redis: RedisConnection, name: str) -> None:
        """`redis` has the checkpoint; `name` is CDC_NAME."""
        self._redis = redis
        self._key = redis.prefixed(f"cdc:{name}:control")
        self.fields: dict[str, dict[str, Any]] = {}

    def close(self) -> None:
        self._redis.close()

    def read(self) -> None:
        (answer,) = self._redis.ask([("HGETALL", self._key)])
        pairs = answer.items() if isinstance(answer, dict) else zip(answer[::2], answer[1::2], strict=True)
        self.fields = {name.decode(): json.loads(value) for name, value in pairs}

    def set(self, name: str, value: Mapping[str, Any]) -> None:
        self._redis.ask([("HSET", self._key, name, json.dumps(value))])
        self.fields[name] = dict(value)

    def remove(self, *names: str) -> None:
        if names:
            self._redis.ask([("HDEL", self._key, *names)])
        for name in names:
            self.fields.pop(name, None)

    @property
    def is_paused(self) -> bool:
        return _ALL in self.fields

    @property
    def paused_routes(self) -> Iterator[str]:
        """The ids of the paused routes."""
        return self.after(_ROUTE)

    @property
    def reloads(self) -> int:
        """How often the listeners of this name have reloaded their routes."""
        return int(self.fields.get(_RELOADS, {}).get("count", 0))

    def count_reload(self, command: str, result: str) -> None:
        """Note the reload that this command requests; the next listener records the result."""
        self.set(_RELOADS, {"count": self.reloads + 1, "command": command, "result": result})

    @property
    def unfinished_reload(self) -> tuple[str, str] | None:
        """The command and the result of a reload whose routes no listener uses yet."""
        noted = self.fields.get(_RELOADS, {})
        return (noted["command"], noted["result"]) if "command" in noted else None

    def finish_reload(self) -> None:
        self.set(_RELOADS, {"count": self.reloads})

    @property
    def skips(self) -> Mapping[str, datetime]:
        """By route id, the time until which the route fires nothing."""
        return {
            route: datetime.fromisoformat(self.fields[f"{_SKIP}{route}"]["until"])
            for route in self.after(_SKIP)
        }

    def after(self, head: str) -> Iterator[str]:
        """Return the rest of each name that begins with `head`."""
        return (name.removeprefix(head) for name in self.fields if name.startswith(head))


# The log may have commits in a different order than their times.
_OUT_OF_ORDER: Final = timedelta(seconds=10)

_OFFERED_BY_HAND: Final = "Backfill each table that a route watches: python -m listener backfill TABLE"

_ALL: Final = "all"
_RELOADS: Final = "reloads"
_ROUTE: Final = "route:"
_SKIP: Final = "skip:"


class Control:
    """Runs commands between two batches, and holds the stream while it is paused."""

    def __init__(
        self,
        queue: CommandQueue,
        state: ControlState,
        publisher: Publisher,
        routes: Sequence[Route],
        reloader: Reloader | None = None,
        *,
        backfills: Backfills | None = None,
        replays: Replays | None = None,
        tables: ExistingTables | None = None,
        loads_first: bool = False,
    ) -> None:
        """`tables` are the database's. `loads_first`: backfill each table with routes that take READ, once."""
        self._tables = tables
        self._loads_first = loads_first
        self._has_offered = False
        self.backfills = backfills
        self.replays = replays
        self._queue = queue
        self._state = state
        self._publisher = publisher
        self._routes = routes
        self._reloader = reloader
        self._reloading: Command | None = None
        self._looked_at = 0.0
        self._refusal: str | None = None  # of the broker, as last logged
        self._skips: Mapping[str, datetime] = {}
        self._skipped = 0
        self._reloads = 0
        self._verbs: dict[str, Callable[[Command], str]] = {
            "pause": self._pause,
            "resume": self._resume,
            "skip": self._skip,
            "backfill_dismiss": self._dismiss,
            **({} if backfills is None else backfills.verbs),
            **({} if replays is None else replays.verbs),
        }

    def begin(self) -> None:
        """Note how many reloads the current routes include. Call it before reading."""
        self._state.read()
        self._reloads = self._state.reloads

    def restore(self) -> bool:
        """Load the state in force; call it before the first batch.

        Return False if another listener of this name has reloaded its routes meanwhile: then this one reloads too.
        """
        self._state.read()
        if self._reloader is not None and self._state.reloads != self._reloads:
            log.info("reloading", result="Another listener of this name has reloaded its routes meanwhile.")
            self._reloader.reload()
            return False
        self._finish_reload()
        self._apply()
        if self.backfills is not None:
            self.backfills.restore()
            self._load_first(self.backfills)
        if self.replays is not None:
            self.replays.restore()
        return True

    def filtered(self, fired: Iterable[Call | Parked]) -> Iterable[Call | Parked]:
        """Return the fired tasks without those of skipping routes."""
        return self._unskipped(fired) if self._skips else fired

    def passed(self, committed_at: datetime | None) -> None:
        """Drop the skips that end before the last published change."""
        if committed_at is None or not self._skips:
            return
        over = [route for route, until in self._skips.items() if committed_at > until + _OUT_OF_ORDER]
        if over:
            with suppress(BrokerAwayError, BrokerError):  # next time
                self._state.remove(*(f"{_SKIP}{route}" for route in over))
            self._skips = {route: until for route, until in self._skips.items() if route not in over}
            log.info("skip_ended", routes=over, skipped=self._skipped)

    def look(self) -> None:
        """Run the next command, if there is one and a check is due. An unavailable broker is not an error here."""
        now = monotonic()
        if now - self._looked_at < _LOOK_EVERY:
            return
        self._looked_at = now
        try:
            self._do_next()
            self._refusal = None
        except BrokerAwayError as error:
            log.debug("commands_not_read", error=error.message)
        except BrokerError as error:  # a missing permission, for example: waiting does not help
            if error.message != self._refusal:
                log.warning("commands_not_read", error=error.message, hint=error.hint)
            self._refusal = error.message

    def hold(self, wakeup: Wakeup, keep_up: Callable[[], None]) -> None:
        """Return when the stream is not paused, or the listener is stopped; call `keep_up` in between."""
        if not self._state.is_paused:
            return
        log.warning("stream_paused", by=self._state.fields[_ALL].get("who"))
        while not wakeup.wait(_WHILE_PAUSED):
            self._looked_at = 0.0
            self.look()
            if not self._state.is_paused:
                log.info("stream_resumed")
                return
            keep_up()

    def close(self) -> None:
        if self.replays is not None:
            self.replays.close()
        self._queue.close()

    def _do_next(self) -> None:
        if self._reloading is not None:
            self._look_at_reload(self._reloading)
            return
        command = self._queue.next()
        if command is None:
            command = self._own_reload()
        if command is None:
            return
        if command.verb == "reload":
            self._start_reload(command)
            return
        try:
            self._queue.done(command, self._obey(command))
        except CommandRefusedError as error:
            self._queue.refused(command, error)
            log.warning("command_refused", verb=command.verb, by=command.who, reason=error.message)

    def _obey(self, command: Command) -> str:
        do = self._verbs.get(command.verb)
        if do is None:
            raise CommandRefusedError(
                f"This listener knows no command {command.verb!r}.",
                hint="Use the same version of cdc-tasks for the listener and the command line.",
                code="unknown_command",
            )
        try:
            result = do(command)
        except (LookupError, TypeError, ValueError) as error:
            raise CommandRefusedError(
                f"The command {command.verb} has no usable arguments: {type(error).__name__}.",
                hint="Use the same version of cdc-tasks for the listener and the command line.",
                code="unknown_command",
            ) from error
        log.info("command_done", verb=command.verb, by=command.who, result=result)
        if command.verb == "backfill":
            table = f"{OFFER}{command.arguments['schema']}.{command.arguments['table']}"
            if table in self._state.fields:
                self._state.remove(table)
        return result

    # --- Automatic backfills -----------------------------------------------------------------------------

    def _load_first(self, backfills: Backfills) -> None:
        """Request the backfills of a first start. If the database does not answer, the next start does it."""
        if not self._loads_first or self._tables is None:
            return
        loaded = list(self._state.after(LOADED))
        try:
            for command in first_backfills(self._tables, self._routes, loaded):
                table = f"{command.arguments['schema']}.{command.arguments['table']}"
                self._queue.done(command, backfills.verbs["backfill"](command))
                self._state.set(f"{LOADED}{table}", {"at": command.at})
        except (BrokerAwayError, BrokerError):
            raise
        except CDCError as error:
            log.warning("first_load_waits", reason=error.message)
            return
        self._loads_first = False

    def offer_backfills(self) -> None:
        """Log the commands that update tables after an accepted gap; `status` shows them, too."""
        if self._has_offered or self._tables is None:
            return
        self._has_offered = True
        try:
            commands = backfill_commands(self._tables.names(), self._routes)
            for table, command in commands.items():
                self._state.set(f"{OFFER}{table}", {"command": command, "since": now()})
        except CDCError as error:
            log.warning("backfill_not_offered", reason=error.message, hint=_OFFERED_BY_HAND)
            return
        if commands:
            log.warning("backfill_offered", tables=list(commands), hint="\n".join(commands.values()))

    def _dismiss(self, command: Command) -> str:
        tables = command.arguments["tables"] or list(self._state.after(OFFER))
        self._state.remove(*(f"{OFFER}{table}" for table in tables))
        return f"Backfills are no longer offered for: {', '.join(tables) or 'any table'}."

    # --- Pause, resume, skip ------------------------------------------------------------------------------

    def _pause(self, command: Command) -> str:
        wanted = command.arguments["routes"]
        note = {"who": command.who, "since": command.at}
        if not wanted:
            self._state.set(_ALL, note)
            return "The stream is paused: changes wait in the database's log."
        for route in self._named(wanted):
            self._state.set(f"{_ROUTE}{route.id}", {**note, "task": route.task})
        self._apply()
        return f"Paused: {self._told(wanted)}. Messages of these routes are set aside."

    def _resume(self, command: Command) -> str:
        wanted = command.arguments["routes"]
        if not wanted:
            paused = [_ALL, *(f"{_ROUTE}{route}" for route in self._state.paused_routes)]
            self._state.remove(*paused)
            self._apply()
            return "Nothing is paused any more."
        ids = {route.id for route in self._named(wanted, also=tuple(self._state.paused_routes))}
        ids |= set(wanted) & set(self._state.paused_routes)
        if not ids & set(self._state.paused_routes):
            raise CommandRefusedError(
                f"{self._told(wanted)} is not paused.",
                hint="See what is paused: python -m listener commands",
                code="not_paused",
            )
        self._state.remove(*(f"{_ROUTE}{route}" for route in ids))
        self._apply()
        return f"Resumed: {self._told(wanted)}."

    def _skip(self, command: Command) -> str:
        routes = self._named(command.arguments["routes"])
        until = command.arguments["until"]
        if datetime.fromisoformat(until).tzinfo is None:  # it could not be compared with the times of changes
            raise ValueError(until)
        dropped = 0
        for route in routes:
            dropped += self._publisher.drop_set_aside(route.id)
            self._state.set(f"{_SKIP}{route.id}", {"who": command.who, "until": until, "task": route.task})
        self._apply()
        names = self._told(command.arguments["routes"])
        return f"{names} fires nothing for changes committed until {until}. {dropped} set aside were dropped."

    def _apply(self) -> None:
        """Apply the state."""
        self._publisher.pause(set(self._state.paused_routes))
        self._skips = self._state.skips

    def _unskipped(self, fired: Iterable[Call | Parked]) -> Iterator[Call | Parked]:
        for each in fired:
            until = self._skips.get(each.route.id)
            if until is None or isinstance(each.change, Origin) or each.change.committed_at > until:
                yield each
            else:
                self._skipped += 1

    def _named(self, names: Sequence[str], also: Sequence[str] = ()) -> list[Route]:
        """Return the routes with these ids or tasks. Raise CommandRefusedError."""
        found: dict[str, Route] = {}
        for name in names:
            mine = {route.id: route for route in self._routes if name in {route.id, route.task}}
            if not mine and name not in also:
                raise self._unknown(name)
            found |= mine
        return list(found.values())

    def _unknown(self, name: str) -> CommandRefusedError:
        near = get_close_matches(name, {route.task for route in self._routes}, n=1)
        more = f" Did you mean {near[0]}?" if near else ""
        return CommandRefusedError(
            f"No route has the task or the id {name}.{more}",
            hint="See them: python -m listener routes",
            code="unknown_route",
        )

    @staticmethod
    def _told(names: Sequence[str]) -> str:
        return ", ".join(names)

    # --- Reload -------------------------------------------------------------------------------------------

    def _own_reload(self) -> Command | None:
        if self._reloader is None or not self._reloader.is_due:
            return None
        return Command(verb="reload", who="the listener: a signal, or a changed file")

    def _start_reload(self, command: Command) -> None:
        if self._reloader is None:
            error = CommandRefusedError("This listener cannot reload: it runs inside another program.")
            self._queue.refused(command, error)
            return
        log.info("reload_started", by=command.who)
        self._reloader.start()
        self._reloading = command

    def _look_at_reload(self, command: Command) -> None:
        reloader = self._reloader
        result = None if reloader is None else reloader.result()
        if reloader is None or result is None:
            return
        self._reloading = None
        if isinstance(result, CDCError):
            log.error("reload_refused", code=result.code, error=result.message, hint=result.hint)
            self._queue.refused(command, result)
        else:
            self._state.count_reload(self._queue.begun(command), result)
            log.info("reloading", by=command.who, result=result)
            reloader.reload()

    def _finish_reload(self) -> None:
        """Record the reload that has started this listener.

        Not earlier: only now are the tables and events of the new routes published, so that no change is missed which a
        person makes after the answer.
        """
        unfinished = self._state.unfinished_reload
        if unfinished is not None and self._state.reloads == self._reloads:
            self._queue.finished(*unfinished)
            self._state.finish_reload()
