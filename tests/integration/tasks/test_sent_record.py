"""The record that keeps one message from being sent twice, whoever tries."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from cdc_tasks.notify import delivery_log as sent
from cdc_tasks.notify.delivery_log import Claim, SendRecord
from cdc_tasks.retry import NotYetError, TryAgain
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.support.helpdesk import HelpDesk


def test_of_many_who_want_to_send_at_once_only_one_may(in_process: HelpDesk) -> None:
    def claim(_: int) -> Claim | None:
        try:
            return SendRecord("one").claim()
        except TryAgain:
            return None

    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(claim, range(40)))
    assert [each for each in claims if each] == [Claim.FREE]


def test_what_was_sent_stays_sent(in_process: HelpDesk) -> None:
    first = SendRecord("one")
    assert first.claim() is Claim.FREE
    first.sent()
    assert SendRecord("one").claim() is Claim.SENT
    assert 0 < in_process.broker.cache.ttl("cdc:sent:one") <= 7 * 24 * 3600


def test_what_the_service_did_not_take_may_be_sent_at_once(in_process: HelpDesk) -> None:
    first = SendRecord("one")
    first.claim()
    first.not_sent()
    assert SendRecord("one").claim() is Claim.FREE


def test_the_second_is_told_how_long_to_wait_for_the_first(in_process: HelpDesk) -> None:
    SendRecord("one").claim()
    with pytest.raises(NotYetError) as caught:
        SendRecord("one").claim()
    assert caught.value.after is not None
    assert 0 < caught.value.after <= sent._HELD


def test_after_a_sender_died_the_next_learns_that_nobody_knows(
    in_process: HelpDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sent, "_HELD", 0.2)
    dead = SendRecord("one")
    dead.claim()

    def claim() -> Claim | None:
        try:
            return SendRecord("one").claim()
        except TryAgain:
            return None

    assert wait_until(claim, what="the record to be given up") is Claim.UNKNOWN
    dead.not_sent()  # it was not dead after all, but it holds the record no longer
    with pytest.raises(TryAgain):
        SendRecord("one").claim()


def test_whoever_asks_twice_because_the_answer_got_lost_hears_the_same(in_process: HelpDesk) -> None:
    record = SendRecord("one")
    assert record.claim() is Claim.FREE
    assert record.claim() is Claim.FREE


def test_who_stood_still_since_the_claim_is_told_before_the_call(
    in_process: HelpDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sent, "_HELD", 0.2)
    stood_still = SendRecord("one")
    stood_still.claim()
    stood_still.confirm()
    other = SendRecord("one")
    claim = wait_until(lambda: _claimed(other), what="the first claim to count no more")
    assert claim is Claim.UNKNOWN
    with pytest.raises(TryAgain, match="taken this message over"):
        stood_still.confirm()
    other.confirm()
    other.sent()
    with pytest.raises(TryAgain):
        stood_still.confirm()


def _claimed(record: SendRecord) -> Claim | None:
    try:
        return record.claim()
    except TryAgain:
        return None
