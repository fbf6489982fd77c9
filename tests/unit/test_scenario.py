"""The demo checks the effects of a step: a missing, failed or repeated effect is an error that names it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest

from demo.inbox import Message
from demo.observer import CacheChanged, TaskEnded, TaskReceived
from demo.scenario import ScenarioError, _await
from demo.steps import Delivery, Refresh

if TYPE_CHECKING:
    from demo.observer import Observation

TO_ANNA = Delivery("slack", "anna@example.com", ("New Ticket", "Printer"))
RECEIVED = TaskReceived(id="1", name="cdc_tasks.deliver", arguments="()")
SUCCEEDED = TaskEnded(id="1", name="cdc_tasks.deliver", state="SUCCESS", outcome="sent", seconds=0.01)
FAILED = TaskEnded(id="1", name="cdc_tasks.deliver", state="FAILURE", outcome="Refused()", seconds=None)


def message(text: str, *, to: str = "anna@example.com") -> Message:
    return Message(number=1, service="slack", to=to, text=text, content={}, at=0.0, clock="")


def await_effects(effects: list[Any], *seen: Observation) -> list[Observation]:
    """Return what the narrator showed before the step was over."""
    shown: list[Observation] = []
    stack: Any = Mock(log_ends="the end of its log, worker: …")
    stack.observations.return_value = iter(seen)
    narrator: Any = Mock()
    narrator.show.side_effect = lambda observation, **_: shown.append(observation)
    _await(effects, stack, narrator)
    return shown


def test_a_step_is_over_when_its_effects_have_come_and_its_tasks_have_ended() -> None:
    late = message("New Ticket: the next step's", to="mona@example.com")
    seen = [RECEIVED, message("New Ticket: Printer on fire"), SUCCEEDED, late]

    assert await_effects([TO_ANNA], *seen) == seen[:-1]


def test_a_message_that_does_not_come_is_named_with_the_ends_of_the_logs() -> None:
    with pytest.raises(ScenarioError) as raised:
        await_effects([TO_ANNA], RECEIVED, SUCCEEDED)

    assert "a message on Slack to anna@example.com with 'New Ticket' and 'Printer'" in str(raised.value)
    assert "the end of its log, worker" in str(raised.value)


def test_a_cache_that_does_not_change_is_named() -> None:
    old = CacheChanged(key="master:roles", before=None, after='[{"name": "Admin"}]', at=0.0)

    with pytest.raises(ScenarioError, match="'Super Admin' in the cache's master:roles"):
        await_effects([Refresh("master:roles", "Super Admin")], old)


def test_a_message_that_comes_twice_is_an_error() -> None:
    twice = [message("New Ticket: Printer on fire")] * 2

    with pytest.raises(ScenarioError, match=r"arrived twice, or for the wrong person: anna@example\.com"):
        await_effects([TO_ANNA], RECEIVED, *twice)


def test_a_task_that_fails_is_an_error_at_once() -> None:
    with pytest.raises(ScenarioError, match=r"cdc_tasks\.deliver failed: Refused"):
        await_effects([TO_ANNA], RECEIVED, FAILED, message("New Ticket: Printer on fire"))
