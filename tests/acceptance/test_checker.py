"""The checker itself: what it must notice, on a queue made here."""

from __future__ import annotations

import ast
import json
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.checker import EXPECTED, Message, faults, read_message
from tests.acceptance.ledger import Committed
from tests.acceptance.reads import faults_of_reads

Queues = dict[str, list[Message]]

_TASK = {"id": "0/10:2-chaos.enqueued", "args": [7]}
_COMMITTED = [
    Committed(position=(0x10, 0), table="events", event="insert", before=None, after={"id": 1, "body": "a"}),
    Committed(position=(0x10, 1), table="events", event="delete", before={"id": 1, "body": "a"}, after=None),
    Committed(
        position=(0x10, 2),
        table="tasks",
        event="enqueued",
        before=None,
        after={"id": "0/10:2-chaos.enqueued", "args": [7]},
    ),
    Committed(position=(0x20, 0), table="events", event="truncate", before=None, after=None),
]


def _change(commit: int, number: int, event: str, **more: Any) -> dict[str, Any]:
    position = f"0/{commit:X}:{number}"
    change = {"schema": "public", "table": "events", "event": event, "position": position}
    return {**change, "before": None, "after": None, "unavailable": [], **more}


def _message(task: str, argument: Any, position: str) -> Message:
    raw = {
        "body": b64encode(json.dumps([[argument], {}, {}]).encode()).decode(),
        "headers": {
            "id": f"{position}-{task}",
            "task": task,
            "argsrepr": f"<public.events insert {position}>",
        },
        "properties": {"delivery_tag": f"{position}-{task}.1", "body_encoding": "base64"},
    }
    return read_message(json.dumps(raw).encode())


def _right() -> Queues:
    changes = [
        _change(0x10, 0, "insert", after={"id": 1, "body": "a"}),
        _change(0x10, 1, "delete", before={"id": 1}, unavailable=["body"]),
        _change(0x20, 0, "truncate"),
    ]
    messages = [_message("chaos.events", change, change["position"]) for change in changes]
    return {
        "cdc_bulk": [*messages[:2], _message("chaos.enqueued", 7, "0/10:2"), messages[2]],
        "celery": [_message("chaos.new_events", changes[:1], "0/10:0")],
        "cdc_notifications": [],
    }


def _forge(queues: Queues, **values: Any) -> None:
    queues["cdc_bulk"][0].arguments[0].update(values)


def _gap_at_the_end(queues: Queues) -> None:
    queues["cdc_bulk"].pop()


def _gap_within_a_transaction(queues: Queues) -> None:
    del queues["cdc_bulk"][0]


def _repeat(queues: Queues) -> None:
    queues["cdc_bulk"].append(queues["cdc_bulk"][-1])


def _repeat_under_another_id(queues: Queues) -> None:
    queues["cdc_bulk"].append(replace(queues["cdc_bulk"][-1], id="another", tag="another"))


def _swap(queues: Queues) -> None:
    queues["cdc_bulk"].reverse()


def _invent(queues: Queues) -> None:
    queues["cdc_bulk"].append(_message("chaos.events", _change(0x30, 0, "insert"), "0/30:0"))


def _enqueue_what_was_rolled_back(queues: Queues) -> None:
    queues["cdc_bulk"].append(_message("chaos.enqueued", 8, "0/30:0"))


def _enqueue_nothing(queues: Queues) -> None:
    del queues["cdc_bulk"][2]


def _enqueue_too_late(queues: Queues) -> None:
    queues["cdc_bulk"].append(queues["cdc_bulk"].pop(2))


def _enqueue_other_arguments(queues: Queues) -> None:
    queues["cdc_bulk"][2] = _message("chaos.enqueued", 8, "0/10:2")


def _wrong_value(queues: Queues) -> None:
    _forge(queues, after={"id": 1, "body": "b"})


def _null_for_a_value_that_was_not_sent(queues: Queues) -> None:
    queues["cdc_bulk"][1].arguments[0].update(before={"id": 1, "body": None}, unavailable=[])


def _wrong_event(queues: Queues) -> None:
    _forge(queues, event="update")


def _nothing_at_all(queues: Queues) -> None:
    queues.update({queue: [] for queue in EXPECTED})


def _nothing_after_the_last_change(queues: Queues) -> None:
    change = _change(0x20, 0, "insert", table="accounts", after={"id": 1, "owner": 7})
    queues["cdc_bulk"] += [
        _message("chaos.owner", 7, "0/10:0"),
        _message("chaos.accounts", change, change["position"]),
    ]


def _empty_batch(queues: Queues) -> None:
    queues["celery"].append(_message("chaos.new_events", [], "0/20:0"))


def test_a_queue_that_has_each_change_once_in_order_has_no_fault() -> None:
    assert faults(_right(), _COMMITTED) == []


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_gap_at_the_end, "gap"),
        (_gap_within_a_transaction, "gap"),
        (_repeat, "repeat"),
        (_repeat_under_another_id, "repeat"),
        (_swap, "order"),
        (_invent, "invented"),
        (_enqueue_what_was_rolled_back, "invented"),
        (_enqueue_nothing, "gap"),
        (_enqueue_too_late, "order"),
        (_enqueue_other_arguments, "content"),
        (_wrong_value, "content"),
        (_null_for_a_value_that_was_not_sent, "content"),
        (_wrong_event, "content"),
        (_nothing_at_all, "gap"),
        (_nothing_after_the_last_change, "owner 7 changed"),
        (_empty_batch, "a batch of 0"),
    ],
)
def test_what_is_wrong_in_a_queue_is_noticed(harm: Callable[[Queues], None], said: str) -> None:
    queues = _right()
    harm(queues)
    found = faults(queues, _COMMITTED)
    assert any(said in fault for fault in found), found


def test_repeats_with_their_own_ids_pass_only_where_the_broker_allows_them() -> None:
    queues = _right()
    queues["cdc_bulk"].append(replace(queues["cdc_bulk"][-1], tag="another"))
    assert faults(queues, _COMMITTED, repeats=True) == []


@pytest.mark.parametrize("module", ["checker", "ledger"])
def test_the_checker_shares_no_code_with_the_listener(module: str) -> None:
    tree = ast.parse(Path(__file__).with_name(f"{module}.py").read_text())
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(name.startswith(("listener", "cdc_tasks")) for name in imported)


def _sent(event: str, key: int, version: int | None, *, before: int | None = None) -> dict[str, Any]:
    after = None if version is None else {"id": key, "v": version}
    old = None if before is None else {"id": before}
    return {"id": f"{event}-{key}-{version}", "event": event, "before": old, "after": after}


def test_the_checker_of_reads_finds_what_is_missing_doubled_stale_or_gone() -> None:
    right = [
        _sent("read", 1, 1),
        _sent("read", 2, 2),
        _sent("update", 1, 5),
        _sent("delete", 2, None, before=2),
        _sent("update", 4, 6, before=3),
    ]
    rows = {1: 5, 4: 6}
    assert faults_of_reads([_sent("read", 3, 3), *right], rows) == []
    for wrong, fault in (
        (right[:2] + right[3:], "row 1 with version 5 was not delivered"),
        ([*right, _sent("read", 1, 5), _sent("read", 1, 5)], "id read-1-5 is there 2 times"),
        ([*right, _sent("read", 1, 1)], "row 1 went back from 5 to 1 by a read"),
        ([*right, _sent("read", 2, 7)], "row 2 was delivered last as if it were there"),
    ):
        assert fault in faults_of_reads(wrong, rows)
