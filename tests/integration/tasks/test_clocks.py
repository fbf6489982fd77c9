"""The machines' clocks may differ, and a step of a clock has no effect."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from cdc_tasks.broker import clock
from cdc_tasks.broker.clock import CLOCK, LONGEST_STEP
from cdc_tasks.broker.delays import eta_by_this_clock, with_countdown
from cdc_tasks.notify import delivery_log
from cdc_tasks.notify.accounts import Account
from cdc_tasks.notify.delivery_log import DeliveryRecord
from cdc_tasks.notify.rate_limit import Channel
from cdc_tasks.notify.services import Rate, Recipient
from cdc_tasks.retry import NotYetError
from harness.waiting import wait_until
from harness.worker import Worker

if TYPE_CHECKING:
    from tests.support.helpdesk import HelpDesk

_HOUR = 3_600_000
_NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def _step(helpdesk: HelpDesk, milliseconds: int) -> None:
    """Step Redis' clock ahead: the time that it had when it was last read is now earlier by as much."""
    helpdesk.broker.cache.hincrby(CLOCK, "seen", -milliseconds)


def _acquire(delivery_id: str, account: Account, rate: Rate) -> None:
    Channel.of(account).acquire(rate, DeliveryRecord(delivery_id))


def _wait(delivery_id: str, account: Account, rate: Rate) -> float:
    with pytest.raises(NotYetError) as caught:
        _acquire(delivery_id, account, rate)
    return caught.value.after or 0


@pytest.mark.parametrize("step", [_HOUR, -_HOUR])
def test_the_claim_of_a_message_holds_when_redis_clock_steps(in_process: HelpDesk, step: int) -> None:
    sender = DeliveryRecord("one")
    sender.claim()
    _step(in_process, step)
    with pytest.raises(NotYetError) as caught:
        DeliveryRecord("one").claim()
    assert 60 < (caught.value.after or 0) <= delivery_log._LEASE
    sender.confirm()
    sender.sent("slack")


@pytest.mark.parametrize("step", [_HOUR, -_HOUR])
def test_the_next_message_of_a_channel_waits_for_its_time_and_no_hour_when_redis_clock_steps(
    in_process: HelpDesk, step: int
) -> None:
    account, rate = _account(), Rate(channel=1, service=1)
    _acquire("one", account, rate)
    wait = _wait("two", account, rate)
    _step(in_process, step)
    if step < 0:
        assert 0 < _wait("two", account, rate) <= wait
    else:
        _acquire("two", account, rate)


def test_the_clock_goes_on_while_no_task_runs(helpdesk: HelpDesk) -> None:
    cache = helpdesk.broker.cache
    assert clock._EVERY < LONGEST_STEP
    with Worker({**helpdesk.environment, "CDC_TASK_MODULES": "tests.support.celery_settings.quick_clock"}):
        first = wait_until(lambda: cache.hget(CLOCK, "passed"), timeout=30, what="a worker to look at it")
        wait_until(lambda: int(cache.hget(CLOCK, "passed") or 0) > int(first), timeout=30, what="it again")


def test_a_message_of_a_worker_whose_clock_is_ahead_waits_no_longer_than_it_said(helpdesk: HelpDesk) -> None:
    environment = {**helpdesk.environment, "CDC_TASK_MODULES": "tests.support.celery_settings.clock_ahead"}
    right = {**helpdesk.environment, "CDC_TASK_MODULES": "tests.support.tasks.killed"}
    with Worker(environment, "-Q", "celery"), Worker(right, "-Q", "cdc_bulk", "-n", "right@%h"):
        helpdesk.send("ahead.send_on", 1, queue="celery")
        wait_until(lambda: helpdesk.broker.cache.hexists("noted", "1"), timeout=30, what="the message")


def test_a_message_is_due_by_the_sooner_of_the_two() -> None:
    def due(eta: datetime, countdown: float | None) -> str | None:
        return eta_by_this_clock(with_countdown({"eta": eta.isoformat()}, countdown), _NOW)

    at = [_NOW + timedelta(seconds=seconds) for seconds in (5, 30, 3600)]
    assert due(at[2], 30) == at[1].isoformat()  # their clock is an hour ahead
    assert due(at[0], 30) == at[0].isoformat()  # theirs is behind, or it was in its queue for a while
    assert due(at[2], None) == at[2].isoformat()
    assert due(at[2], float("nan")) == at[2].isoformat()
    assert eta_by_this_clock({"eta": None}, _NOW) is None


def test_a_retry_does_not_take_over_the_countdown_of_the_message_before() -> None:
    assert with_countdown({"cdc_countdown": 5.0, "other": 1}, None) == {"other": 1}


def _account() -> Account:
    recipient = Recipient(address="C0ANNA", secret=SecretStr("xoxb"), email="anna@example.com")
    return Account(id=1, user_id=1, service="slack", recipient=recipient)
