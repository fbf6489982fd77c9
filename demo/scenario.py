"""Plays the steps, one after the other, and insists on their effects."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

from cdc_tasks import cache
from cdc_tasks.errors import CDCError
from demo.crash import Crash
from demo.narrator import Since
from demo.steps import STEPS, TOKEN, Refresh
from demo.witness import Message, TaskEnded, TaskReceived

if TYPE_CHECKING:
    from collections.abc import Iterable

    from demo.narrator import Narrator
    from demo.stack import Stack
    from demo.steps import Effect, Step
    from demo.witness import Sighting

__all__ = ["ScenarioError", "play", "watch"]

_PATIENCE: Final = 30.0  # seconds for an effect to come
_PAUSE: Final = 1.5  # seconds between two steps, where a person looks on
_QUIET: Final = 2.0  # seconds after which what comes next is something new
_CALL: Final = ("-A", "cdc_tasks", "call", "cdc_tasks.refresh_master_cache", "--args", '["roles"]')


class ScenarioError(CDCError):
    """A step did not have the effect that it must have."""


def play(stack: Stack, narrator: Narrator) -> None:
    """Play all of it; raises ScenarioError, and ServerError where a program has ended by itself."""
    for step in STEPS:
        _play(step, stack, narrator)
        _pause(narrator)
    _refresh_by_hand(stack, narrator)
    _pause(narrator)
    Crash(stack, narrator).play()


def watch(stack: Stack, narrator: Narrator) -> None:
    """Print whatever happens, until a signal ends it."""
    last = -_QUIET
    while True:
        for sighting in stack.sightings(patience=60):
            now = time.monotonic()
            if now - last > _QUIET:
                narrator.clock()
            last = now
            narrator.tell(sighting)


def _play(step: Step, stack: Stack, narrator: Narrator) -> None:
    narrator.step(step.title, sql=step.sql)
    token = stack.sample.sealed_token()
    statements = [statement.strip().replace(TOKEN, token) for statement in step.sql.split(";")]
    committed = stack.sample.execute(*(each for each in statements if each not in {"", "BEGIN", "COMMIT"}))
    _await(step.effects, stack, narrator, since=Since(committed, "commit"))


def _refresh_by_hand(stack: Stack, narrator: Narrator) -> None:
    key = "master:roles"
    narrator.step("A key of the cache is lost, and somebody brings it back by hand")
    narrator.shell(f"redis-cli DEL {key}")
    cache.client().delete(key)
    _await([Refresh(key, "")], stack, narrator)
    narrator.shell("celery -A cdc_tasks call cdc_tasks.refresh_master_cache --args '[\"roles\"]'")
    begun = Since(time.monotonic(), "the command's start")
    call = subprocess.Popen(
        [sys.executable, "-m", "celery", *_CALL], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    _await([Refresh(key, "Super Admin")], stack, narrator, since=begun)
    _, problem = call.communicate(timeout=_PATIENCE)
    if call.returncode != 0:
        raise ScenarioError(f"celery call ended with status {call.returncode}", hint=problem)


def _await(
    effects: Iterable[Effect], stack: Stack, narrator: Narrator, *, since: Since | None = None
) -> None:
    """Return when all effects have come and the tasks are over; no message may come that is none of them."""
    missing, running = list(effects), set[str]()
    for sighting in stack.sightings(patience=_PATIENCE):
        narrator.tell(sighting, since=since)
        if isinstance(sighting, TaskReceived):
            running.add(sighting.id)
        elif isinstance(sighting, TaskEnded):
            _must_not_fail(sighting)
            running.discard(sighting.id)
        else:
            _tick_off(missing, sighting)
        if not missing and not running:
            return
    if missing:
        raise ScenarioError(
            f"after {_PATIENCE:.0f} seconds this has still not come: {missing[0]}", hint=stack.last_words
        )


def _must_not_fail(task: TaskEnded) -> None:
    if task.state == "FAILURE":
        raise ScenarioError(f"the task {task.name} failed: {task.outcome}")


def _tick_off(missing: list[Effect], sighting: Sighting) -> None:
    met = next((effect for effect in missing if effect.is_met_by(sighting)), None)
    if met is not None:
        missing.remove(met)
    elif isinstance(sighting, Message):
        raise ScenarioError(f"a message came twice, or to the wrong person: {sighting.to}: {sighting.text}")


def _pause(narrator: Narrator) -> None:
    if narrator.is_watched:
        time.sleep(_PAUSE)
