"""Which messages RabbitMQ has taken over, whatever order it says it in."""

from __future__ import annotations

from types import SimpleNamespace

from listener.publish.kombu.confirms import Confirms


def _sent(*task_ids: str) -> Confirms:
    confirms = Confirms()
    for task_id in task_ids:
        confirms.sent(task_id)
    return confirms


def test_each_message_is_confirmed_by_its_number() -> None:
    confirms = _sent("a", "b", "c")
    confirms.on_ack(2, multiple=False)
    assert confirms.take() == ["b"]
    assert confirms.is_waiting
    confirms.on_ack(3, multiple=False)
    confirms.on_ack(1, multiple=False)
    assert confirms.take() == ["c", "a"]
    assert not confirms.is_waiting


def test_one_word_may_confirm_all_up_to_a_number() -> None:
    confirms = _sent("a", "b", "c", "d")
    confirms.on_ack(1, multiple=False)
    confirms.on_ack(3, multiple=True)
    assert confirms.take() == ["a", "b", "c"]
    assert confirms.is_waiting


def test_what_is_refused_is_not_taken() -> None:
    confirms = _sent("a", "b", "c")
    confirms.on_nack(2, multiple=False)
    confirms.on_ack(3, multiple=True)
    assert confirms.take() == ["a", "c"]
    assert confirms.refused == ["b"]
    assert not confirms.is_waiting


def test_what_no_queue_takes_is_returned_and_then_confirmed_and_is_not_taken() -> None:
    confirms = _sent("a", "b")
    message = SimpleNamespace(properties={"correlation_id": "a"})
    confirms.on_return("NO_ROUTE", "exchange", "key", message)
    confirms.on_ack(2, multiple=True)
    assert confirms.take() == ["b"]
    assert list(confirms.returned) == ["a"]


def test_a_number_that_nobody_waits_for_is_no_matter() -> None:
    confirms = _sent("a")
    confirms.on_ack(1, multiple=False)
    confirms.on_ack(1, multiple=False)
    confirms.on_nack(7, multiple=True)
    assert confirms.take() == ["a"]
    assert not confirms.refused
