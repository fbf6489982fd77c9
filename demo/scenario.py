"""Plays the steps in order, and fails if an effect is missing."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

from cdc_tasks import cache
from cdc_tasks.errors import CDCError
from demo import box_client, broker_down
from demo.crash import Crash
from demo.narrator import Since
from demo.observer import Message, TaskEnded, TaskReceived
from demo.steps import STEPS, TOKEN, Delivery, Refresh

if TYPE_CHECKING:
    from collections.abc import Iterable

    from demo.narrator import Narrator
    from demo.observer import Observation
    from demo.stack import Stack
    from demo.steps import Effect, Step

__all__ = ["ScenarioError", "play", "watch"]

_TIMEOUT: Final = 30.0  # seconds until an effect must have happened
_PAUSE: Final = 1.5  # seconds between two steps, if a person is watching
_QUIET: Final = 2.0  # seconds without an observation that end a section
_CLOSED: Final = (
    Delivery("slack", "nora@example.com", ("Ticket Updated", "in progress → closed")),
    Delivery("teams", "Mona", ("Manager: Ticket Updated", "in progress → closed")),
)
_CALL: Final = ("-A", "cdc_tasks", "call", "cdc_tasks.refresh_master_cache", "--args", '["roles"]')


class ScenarioError(CDCError):
    """A step did not have its effects."""


def play(stack: Stack, narrator: Narrator) -> None:
    """Play all steps; raises ScenarioError, and ServerError if a program has ended."""
    for step in STEPS:
        _play(step, stack, narrator)
        _pause(narrator)
    _refresh_by_hand(stack, narrator)
    _pause(narrator)
    broker_down.play(stack, narrator, lambda effects, since: _await(effects, stack, narrator, since=since))
    _pause(narrator)
    _use_the_box(stack, narrator)
    _pause(narrator)
    Crash(stack, narrator).play()


def watch(stack: Stack, narrator: Narrator) -> None:
    """Print everything that happens, until a signal ends the demo."""
    last = -_QUIET
    while True:
        for observation in stack.observations(timeout=60):
            now = time.monotonic()
            if now - last > _QUIET:
                narrator.clock()
            last = now
            narrator.show(observation)


def _play(step: Step, stack: Stack, narrator: Narrator) -> None:
    narrator.step(step.title, sql=step.sql)
    narrator.look(*step.look)
    token = stack.sample.sealed_token()
    statements = [statement.strip().replace(TOKEN, token) for statement in step.sql.split(";")]
    committed = stack.sample.execute(*(each for each in statements if each not in {"", "BEGIN", "COMMIT"}))
    _await(step.effects, stack, narrator, since=Since(committed, "commit"))


def _refresh_by_hand(stack: Stack, narrator: Narrator) -> None:
    key = "master:roles"
    narrator.step("A key of the cache is lost, and a command restores it")
    narrator.look("/queues", f"{key} is not in Redis, and is back")
    narrator.shell(f"redis-cli DEL {key}")
    cache.client().delete(key)
    _await([Refresh(key, "")], stack, narrator)
    narrator.shell("celery -A cdc_tasks call cdc_tasks.refresh_master_cache --args '[\"roles\"]'")
    begun = Since(time.monotonic(), "the command's start")
    call = subprocess.Popen(
        [sys.executable, "-m", "celery", *_CALL], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    _await([Refresh(key, "Super Admin")], stack, narrator, since=begun)
    _, problem = call.communicate(timeout=_TIMEOUT)
    if call.returncode != 0:
        raise ScenarioError(f"celery call ended with status {call.returncode}", hint=problem)


def _use_the_box(stack: Stack, narrator: Narrator) -> None:
    """Run an example as the page does: over HTTP, with the token from the page."""
    example = next(each for each in stack.box.examples() if each.label == "Close a ticket")
    narrator.step(f"The SQL box, {stack.box.url}, runs an example: {example.label.lower()}", sql=example.sql)
    narrator.look("/changes?table=tickets", "the same change, next to those of the story")
    begun = Since(time.monotonic(), "the click")
    run = box_client.run(stack.box.url, example.sql)
    _await(_CLOSED, stack, narrator, since=begun)
    narrator.note(box_client.described_run(stack.box.url, run))


def _await(
    effects: Iterable[Effect], stack: Stack, narrator: Narrator, *, since: Since | None = None
) -> None:
    """Wait until all effects have happened and all tasks have ended; raises ScenarioError for any other message."""
    missing, running = list(effects), set[str]()
    for observation in stack.observations(timeout=_TIMEOUT):
        narrator.show(observation, since=since)
        if isinstance(observation, TaskReceived):
            running.add(observation.id)
        elif isinstance(observation, TaskEnded):
            _must_not_fail(observation)
            running.discard(observation.id)
        else:
            _tick_off(missing, observation)
        if not missing and not running:
            return
    if missing:
        raise ScenarioError(f"still missing after {_TIMEOUT:.0f} seconds: {missing[0]}", hint=stack.log_ends)


def _must_not_fail(task: TaskEnded) -> None:
    if task.state == "FAILURE":
        raise ScenarioError(f"the task {task.name} failed: {task.outcome}")


def _tick_off(missing: list[Effect], observation: Observation) -> None:
    met = next((effect for effect in missing if effect.is_met_by(observation)), None)
    if met is not None:
        missing.remove(met)
    elif isinstance(observation, Message):
        raise ScenarioError(
            f"a message arrived twice, or for the wrong person: {observation.to}: {observation.text}"
        )


def _pause(narrator: Narrator) -> None:
    if narrator.is_interactive:
        time.sleep(_PAUSE)
