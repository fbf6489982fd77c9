"""The delivery log: one message is sent once, whichever workers try."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from cdc_tasks.notify import delivery_log, message_record
from cdc_tasks.notify.delivery_log import Claim, DeliveryRecord
from cdc_tasks.notify.message_record import MessageNote
from cdc_tasks.retry import NotYetError, TryAgain
from harness.waiting import wait_until

if TYPE_CHECKING:
    from tests.support.helpdesk import HelpDesk


def test_of_many_workers_that_claim_at_once_one_may_send(in_process: HelpDesk) -> None:
    def claim(_: int) -> Claim | None:
        try:
            return DeliveryRecord("one").claim()
        except TryAgain:
            return None

    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(claim, range(40)))
    assert [each for each in claims if each] == [Claim.FREE]


def test_a_sent_message_stays_sent(in_process: HelpDesk) -> None:
    first = DeliveryRecord("one")
    assert first.claim() is Claim.FREE
    for _ in range(2):  # the answer to the first was lost
        first.sent("slack")
    assert DeliveryRecord("one").claim() is Claim.SENT
    assert in_process.broker.cache.hgetall("cdc:totals") == {b"delivered slack": b"1"}
    assert 0 < in_process.broker.cache.ttl("cdc:sent:one") <= 7 * 24 * 3600


def test_a_record_of_messages_that_cannot_be_written_stops_no_message(in_process: HelpDesk) -> None:
    for key in message_record.KEYS:
        in_process.broker.cache.set(key, "of another type")
    note = MessageNote(id="one", account_id=1, kind="test", subject_id=1, change_id="c", service="slack")
    record = DeliveryRecord("one", note)
    assert record.claim() is Claim.FREE
    note.waits(1.0, message_record.RETRY)
    record.sent("slack")
    note.ended(message_record.GAVE_UP)
    assert DeliveryRecord("one").claim() is Claim.SENT
    assert 0 < in_process.broker.cache.ttl("cdc:sent:one") <= 7 * 24 * 3600


def test_a_message_that_the_service_did_not_take_may_be_sent_at_once(in_process: HelpDesk) -> None:
    first = DeliveryRecord("one")
    first.claim()
    first.not_sent()
    assert DeliveryRecord("one").claim() is Claim.FREE


def test_the_second_worker_learns_how_long_to_wait_for_the_first(in_process: HelpDesk) -> None:
    DeliveryRecord("one").claim()
    with pytest.raises(NotYetError) as caught:
        DeliveryRecord("one").claim()
    assert caught.value.after is not None
    assert 0 < caught.value.after <= delivery_log._LEASE


def test_after_a_worker_died_the_next_one_gets_an_unknown_outcome(
    in_process: HelpDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_log, "_LEASE", 0.2)
    dead = DeliveryRecord("one")
    dead.claim()

    def claim() -> Claim | None:
        try:
            return DeliveryRecord("one").claim()
        except TryAgain:
            return None

    assert wait_until(claim, what="the lease to end") is Claim.UNKNOWN
    dead.not_sent()  # it was alive, but its lease has ended
    with pytest.raises(TryAgain):
        DeliveryRecord("one").claim()


def test_a_claim_that_is_repeated_after_a_lost_answer_gets_the_same_answer(in_process: HelpDesk) -> None:
    record = DeliveryRecord("one")
    assert record.claim() is Claim.FREE
    assert record.claim() is Claim.FREE


def test_a_worker_that_was_suspended_since_its_claim_does_not_send(
    in_process: HelpDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_log, "_LEASE", 0.2)
    suspended = DeliveryRecord("one")
    suspended.claim()
    suspended.confirm()
    other = DeliveryRecord("one")
    claim = wait_until(lambda: _claimed(other), what="the lease to end")
    assert claim is Claim.UNKNOWN
    with pytest.raises(TryAgain, match="taken over this message"):
        suspended.confirm()
    other.confirm()
    other.sent("slack")
    with pytest.raises(TryAgain):
        suspended.confirm()


def _claimed(record: DeliveryRecord) -> Claim | None:
    try:
        return record.claim()
    except TryAgain:
        return None
