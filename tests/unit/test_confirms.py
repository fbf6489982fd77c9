"""Which messages RabbitMQ has taken over, whatever order it says it in."""

from __future__ import annotations

from types import SimpleNamespace

from listener.publish.kombu.confirms import Confirms


def _sent(*names: int) -> Confirms:
    confirms = Confirms()
    for name in names:
        confirms.sent(name)
    return confirms


def test_each_message_is_confirmed_by_its_number() -> None:
    confirms = _sent(11, 22, 33)
    confirms.on_ack(2, multiple=False)
    assert confirms.take() == [22]
    assert confirms.is_waiting
    confirms.on_ack(3, multiple=False)
    confirms.on_ack(1, multiple=False)
    assert confirms.take() == [33, 11]
    assert not confirms.is_waiting


def test_one_word_may_confirm_all_up_to_a_number() -> None:
    confirms = _sent(11, 22, 33, 44)
    confirms.on_ack(1, multiple=False)
    confirms.on_ack(3, multiple=True)
    assert confirms.take() == [11, 22, 33]
    assert confirms.is_waiting


def test_what_is_refused_is_not_taken() -> None:
    confirms = _sent(11, 22, 33)
    confirms.on_nack(2, multiple=False)
    confirms.on_ack(3, multiple=True)
    assert confirms.take() == [11, 33]
    assert confirms.refused == [22]
    assert not confirms.is_waiting


def test_what_no_queue_takes_is_returned_and_then_confirmed() -> None:
    confirms = _sent(11, 22)
    message = SimpleNamespace(properties={"correlation_id": "the task"})
    confirms.on_return("NO_ROUTE", "exchange", "key", message)
    confirms.on_ack(2, multiple=True)
    assert confirms.take() == [11, 22]
    assert list(confirms.returned) == ["the task"]


def test_a_number_that_nobody_waits_for_is_no_matter() -> None:
    confirms = _sent(11)
    confirms.on_ack(1, multiple=False)
    confirms.on_ack(1, multiple=False)
    confirms.on_nack(7, multiple=True)
    assert confirms.take() == [11]
    assert not confirms.refused
