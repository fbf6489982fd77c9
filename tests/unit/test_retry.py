"""What the listener retries, what it logs meanwhile, and what ends it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from listener.core.publisher import BrokerAwayError, BrokerError, StoppedError
from listener.core.retry import Retry
from listener.core.source import SourceLostError
from listener.core.wakeup import Wakeup

if TYPE_CHECKING:
    from collections.abc import Callable


def _failing(*errors: Exception) -> Callable[[], str]:
    left = list(errors)

    def action() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return action


def _retry(*, on: type[BrokerAwayError | SourceLostError] = BrokerAwayError, event: str = "waiting") -> Retry:
    return Retry("broker", on=on, event=event, shortest=0.0, longest=0.0)


def test_one_failure_is_retried_at_once_and_not_logged() -> None:
    with capture_logs() as logs:
        assert _retry().call(_failing(BrokerAwayError("stale"))) == "done"
    assert logs == []


def test_each_new_reason_is_logged_once_and_the_end_of_the_wait_too() -> None:
    reasons = ("away", "away", "away", "full", "full")
    with capture_logs() as logs:
        assert _retry().call(_failing(*map(BrokerAwayError, reasons))) == "done"
    assert [(line["event"], line["what"], line.get("error")) for line in logs] == [
        ("waiting", "broker", "away"),
        ("waiting", "broker", "full"),
        ("back", "broker", None),
    ]


def test_the_event_and_the_error_are_the_callers() -> None:
    retry = _retry(on=SourceLostError, event="source_is_away")
    with capture_logs() as logs:
        assert retry.call(_failing(*[SourceLostError("gone")] * 2)) == "done"
    assert [line["event"] for line in logs] == ["source_is_away", "back"]
    with pytest.raises(BrokerAwayError):
        retry.call(_failing(BrokerAwayError("away")))


@pytest.mark.parametrize("before", [0, 1, 3])
def test_another_error_ends_it(before: int) -> None:
    with pytest.raises(BrokerError):
        _retry().call(_failing(*[BrokerAwayError("away")] * before, BrokerError("wrong password")))


def test_stop_ends_a_wait_but_not_what_need_not_wait() -> None:
    retry = _retry()
    retry.stop()
    assert retry.is_stopped
    assert retry.call(_failing(BrokerAwayError("stale"))) == "done"
    with pytest.raises(StoppedError):
        retry.call(_failing(*[BrokerAwayError("away")] * 3))


def test_one_wakeup_ends_the_waits_of_several() -> None:
    wakeup = Wakeup()
    first, second = Retry("broker", wakeup=wakeup), Retry("cache", wakeup=wakeup)
    first.stop()
    with pytest.raises(StoppedError):
        second.sleep(600)
