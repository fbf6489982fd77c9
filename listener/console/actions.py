"""Actions in the console: the same commands as on the command line, sent the same way and recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cdc_tasks.broker.message_groups import groups_of
from cdc_tasks.cli.letters import drop_letter, replay_letter
from cdc_tasks.dead_letters import store as dead_letters
from cdc_tasks.errors import CDCError
from cdc_tasks.record import Command, about, summed
from listener.cli.parked_changes import drop_parked, opened, replay_parked
from listener.control.backfills import chosen_routes
from listener.control.commands import CommandQueue, CommandRefusedError
from listener.control.replays import replayed_routes
from listener.daemon.asked import parse_time, selection_of, with_schema
from listener.daemon.wiring import plan_backfill

if TYPE_CHECKING:
    from starlette.datastructures import FormData

    from listener.console.facts import Facts
    from listener.daemon.settings import ListenerSettings

__all__ = ["Actions", "Done"]

_WAIT: Final = 15.0  # seconds for a listener to do it
_LEAST_RATE: Final = 0.1  # as the commands
_CHUNK: Final = 1_000  # rows that a backfill reads at a time
_BY_LISTENER: Final = frozenset(
    {
        *("pause", "resume", "skip", "reload"),
        *("backfill_pause", "backfill_resume", "backfill_cancel", "backfill_dismiss"),
        *("replay_pause", "replay_resume", "replay_cancel"),
    }
)


class Done(NamedTuple):
    """The result, as text."""

    words: str
    went_well: bool = True


class UnknownActionError(CDCError):
    """The console has no such action."""


class Actions:
    """Runs the action of a form."""

    def __init__(self, settings: ListenerSettings, facts: Facts) -> None:
        self._settings = settings
        self._facts = facts
        self._own: Mapping[str, Callable[[FormData], Done]] = {
            "parked_replay": self._replay_parked,
            "parked_drop": self._drop_parked,
            "letter_replay": self._replay_letters,
            "letter_drop": self._drop_letters,
            "key_skip": self._skip_keys,
            "refresh_cache": self._refresh_cache,
        }

    def do(self, verb: str, form: FormData, who: str) -> Done:
        """Run it, and record who did it. Raise CDCError if it is not possible."""
        try:
            if verb == "backfill":
                return self._give("backfill", self._backfill(form), who)
            if verb == "replay":
                return self._give("replay", self._replay(form), who)
            if verb in _BY_LISTENER:
                return self._give(verb, _arguments(verb, form), who)
            return self._do_here(verb, form, who)
        finally:
            self._facts.forget()

    def _do_here(self, verb: str, form: FormData, who: str) -> Done:
        action = self._own.get(verb)
        if action is None:
            raise UnknownActionError(f"There is no action {verb}.", hint="Load the page again.")
        command = Command(verb=verb, arguments=about([str(each) for each in form.getlist("id")]), who=who)
        try:
            done = action(form)
        except CDCError as error:
            self._note(command, error)
            raise
        self._note(command, done.words)
        return done

    def _note(self, command: Command, result: str | CDCError) -> None:
        with self._facts.stores.opened() as redis:
            CommandQueue(redis, self._facts.name).note(command, result)

    def _give(self, verb: str, arguments: Mapping[str, Any], who: str) -> Done:
        """Send a command to the listener, and wait for the result."""
        command = Command(verb=verb, arguments=arguments, who=who)
        with self._facts.stores.opened() as redis:
            queue = CommandQueue(redis, self._facts.name)
            queue.give(command)
            end = time.monotonic() + _WAIT
            while (outcome := queue.outcome(command)) is None:
                if time.monotonic() >= end and queue.withdraw(command):
                    error = CommandRefusedError(
                        f"No listener accepted the command within {_WAIT:g} seconds, so it was withdrawn.",
                        code="no_listener",
                    )
                    queue.note(command, error)
                    raise error
                time.sleep(0.1)
        more = f" {outcome.hint}" if outcome.hint else ""
        return Done(f"{outcome.result}{more}", went_well=not outcome.is_refused)

    def _backfill(self, form: FormData) -> dict[str, Any]:
        """Return the arguments of a backfill. Raise CDCError if the table cannot be read this way."""
        where, names = _text(form, "where") or None, [str(each) for each in form.getlist("route")]
        schema, table = with_schema(self._settings, _text(form, "table"))
        plan = plan_backfill(self._settings, schema, table, where, _CHUNK)
        chosen_routes(
            self._facts.router.routes, schema, table, names
        )  # raises what the listener would answer
        return {
            "schema": schema,
            "table": table,
            "where": where,
            "routes": names,
            "rate": _rate(form),
            "chunk": _CHUNK,
            "estimate": plan.estimate,
        }

    def _replay(self, form: FormData) -> dict[str, Any]:
        """Return the arguments of a replay. Raise CDCError if it is not possible."""
        names = [str(each) for each in form.getlist("route")]
        if not names:
            raise UnknownActionError(
                "No route is chosen.", hint="Choose it on the page of routes.", code="replay_no_route"
            )
        since, until = parse_time(_text(form, "since")), parse_time(_text(form, "until") or "now")
        if until <= since:
            raise UnknownActionError(
                f"{_text(form, 'until')!r} is not later than {_text(form, 'since')!r}.",
                hint="Write the earlier time first.",
                code="not_a_time",
            )
        asked = selection_of(
            self._settings,
            since,
            until,
            [table] if (table := _text(form, "table")) else [],
            [row] if (row := _text(form, "row")) else [],
        )
        replayed_routes(self._facts.router.routes, names)  # raises what the listener would answer
        return {
            "since": since.isoformat(),
            "until": until.isoformat(),
            "tables": asked.tables,
            "row": asked.row,
            "routes": names,
            "new_ids": bool(form.get("new_ids")),
            "rate": _rate(form),
            "accept_gap": bool(form.get("accept_gap")),
        }

    def _replay_parked(self, form: FormData) -> Done:
        router = self._facts.router
        with opened(self._settings) as store:
            outcomes = [replay_parked(store, store.get(name), router, self._facts.app) for name in _ids(form)]
        return _summed(outcomes, "sent again")

    def _drop_parked(self, form: FormData) -> Done:
        with opened(self._settings) as store:
            return _summed([(True, drop_parked(store, store.get(name))) for name in _ids(form)], "dropped")

    def _replay_letters(self, form: FormData) -> Done:
        return _summed(
            [replay_letter(self._facts.app, dead_letters.get(name)) for name in _ids(form)], "sent again"
        )

    def _drop_letters(self, form: FormData) -> Done:
        return _summed(
            [(True, drop_letter(self._facts.app, dead_letters.get(name))) for name in _ids(form)], "dropped"
        )

    def _skip_keys(self, form: FormData) -> Done:
        """Let keys go on; each id is that of the task that holds the key up, a blank, and the key."""
        with groups_of(self._facts.app) as groups:
            return _summed([_skip(groups, *each.partition(" ")[::2]) for each in _ids(form)], "let go on")

    def _refresh_cache(self, form: FormData) -> Done:
        table = str(form.get("id", ""))
        self._facts.app.send_task("cdc_tasks.refresh_master_cache", args=[table], argsrepr=repr([table]))
        return Done(f"A refresh of {table} is queued.")


def _skip(groups: Any, task_id: str, key: str) -> tuple[bool, str]:
    found = groups.of_key(key)
    if found is not None and found.state == "taken":
        return False, f"A worker has {found.task}: it may be running. Wait for its end"
    return True, "the key goes on" if groups.skip(key, task_id) else "the key has gone on meanwhile"


def _arguments(verb: str, form: FormData) -> dict[str, Any]:
    if verb.startswith("backfill_d"):
        return {"tables": [str(each) for each in form.getlist("id")]}
    if verb.startswith(("backfill_", "replay_")):
        return {verb.partition("_")[0]: str(form.get("id", ""))}
    arguments: dict[str, Any] = (
        {} if verb == "reload" else {"routes": [str(each) for each in form.getlist("id")]}
    )
    if verb == "skip":
        arguments["until"] = datetime.now(UTC).isoformat(timespec="microseconds")
    return arguments


def _ids(form: FormData) -> list[str]:
    found = [str(each) for each in form.getlist("id")]
    if not found:
        raise UnknownActionError("Nothing is chosen.", hint="Choose one line or more.")
    return found


def _text(form: FormData, name: str) -> str:
    return str(form.get(name, "")).strip()


def _rate(form: FormData) -> float | None:
    """Return the rate, None if there is no limit; raise UnknownActionError."""
    text = _text(form, "rate")
    try:
        rate = float(text) if text else None
    except ValueError:
        rate = 0.0
    if rate is not None and not _LEAST_RATE <= rate < float("inf"):
        raise UnknownActionError(
            f"{text!r} is not a rate.",
            hint=f"Write e.g. 1000; the least is {_LEAST_RATE:g}.",
            code="not_a_rate",
        )
    return rate


def _summed(outcomes: list[tuple[bool, str]], verb: str) -> Done:
    """Return one sentence for many results."""
    return Done(summed(outcomes, verb), went_well=all(went_well for went_well, _ in outcomes))
