"""A malformed message has one dead letter, whatever marks the broker adds when it comes again."""

from __future__ import annotations

import json

import pytest

from cdc_tasks.dead_letters.malformed_messages import _identity


def _of(message: object) -> bytes:
    return _identity(json.dumps(message).encode())


@pytest.mark.parametrize(
    "mark",
    [
        {"redelivered": True},
        {"x-delivery-count": 1},
        {"x-acquired-count": 2, "x-delivery-count": 1},
        {"x-death": [{"queue": "celery_delayed_1", "count": 1}], "x-first-death-queue": "celery_delayed_1"},
        {"x-last-death-reason": "expired"},
    ],
)
def test_a_broker_s_marks_change_nothing(mark: dict[str, object]) -> None:
    assert _of({"headers": {"id": "a", **mark}, "body": "b"}) == _of({"body": "b", "headers": {"id": "a"}})


def test_neither_does_the_mark_of_kombu_s_redis_transport() -> None:
    once = {"headers": {}, "properties": {"delivery_info": {"exchange": "bulk"}}}
    again = {
        "headers": {"redelivered": True},
        "properties": {"delivery_info": {"exchange": "bulk", "redelivered": True}},
    }
    assert _of(once) == _of(again)


@pytest.mark.parametrize(
    "other",
    [
        {"headers": {"id": "a", "x-tenant": "1"}, "body": "b"},
        {"headers": {"id": "b"}, "body": "b"},
        {"headers": {"id": "a"}, "body": "c"},
        {"headers": {"id": "a"}, "body": "b", "redelivered": True},
        {"headers": [["id", "a"]], "body": "b"},
        {"headers": {"id": "a"}, "body": "b", "properties": {"delivery_info": "bulk"}},
    ],
)
def test_all_else_makes_another_message(other: object) -> None:
    assert _of(other) != _of({"headers": {"id": "a"}, "body": "b"})


@pytest.mark.parametrize("content", [b"", b"\xff", b"nonsense", b"[1]", b"null", b"[" * 100_000])
def test_what_is_no_mapping_is_its_content(content: bytes) -> None:
    assert _identity(content) == content
