"""The binlog's codec on what real servers have logged: `tests/support/mysql/captures.py`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.mysql.captures import SCENARIOS, BinlogCapture, binlog_captures, read_all

if TYPE_CHECKING:
    from collections.abc import Iterable

    from listener.mysql.codec.change import BinlogChange

_ALL = binlog_captures()


def _on_each_server(scenario: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("capture", binlog_captures(scenario), ids=str)


def _seen(changes: Iterable[BinlogChange]) -> list[tuple[str, str, Any, Any]]:
    return [(each.table, each.event.value, each.before, each.after) for each in changes]


def _person(number: int, name: str | None, age: int | None) -> dict[str, Any]:
    return {"id": number, "name": name, "age": age}


def test_each_scenario_was_recorded_on_the_servers_that_it_is_for() -> None:
    recorded = {(each.scenario, each.server) for each in _ALL}
    assert recorded == {(name, server) for name, (servers, _) in SCENARIOS.items() for server in servers}


@_on_each_server("rows")
def test_rows_come_with_all_their_columns_and_without_those_that_were_rolled_back(
    capture: BinlogCapture,
) -> None:
    changes = capture.changes()
    assert _seen(changes) == [
        ("people", "insert", None, _person(1, "Ada", None)),
        ("people", "insert", None, _person(2, None, 36)),
        ("people", "update", _person(2, None, 36), _person(2, None, 37)),
        ("people", "update", _person(2, None, 37), _person(3, None, 37)),
        ("people", "delete", _person(1, "Ada", None), None),
        ("people", "insert", None, _person(8, "kept", 1)),
    ]
    assert [each.position.rpartition(":")[2] for each in changes] == ["0", "1", "0", "0", "0", "0"]
    assert len({each.id for each in changes}) == len(changes)


@_on_each_server("rows")
def test_a_buffered_transaction_comes_as_it_was(capture: BinlogCapture) -> None:
    changes = read_all(capture.decoder(), capture.raw(), to_the_end=True)
    assert _seen(changes) == _seen(capture.changes())


@_on_each_server("types")
def test_each_type_has_its_form(capture: BinlogCapture) -> None:
    numbers, times, texts, nothing = (each.row for each in capture.changes())
    assert list(numbers.values()) == [
        *(-128, 255, -32768, -8388608, 16777215, -2147483648, 18446744073709551615, 0.1, 1e300),
        *("-123456789.12345678901", "0", 2026, "00000000101"),
    ]
    assert list(times.values()) == [
        *("2026-11-22", "2026-11-22T10:00:00", "2026-11-22T10:00:00.500000", "2026-02-31 00:00:00.000000"),
        *("2026-11-22T10:00:00+00:00", "1970-01-01T00:00:01.250000+00:00", "-838:59:59", "-00:00:00.000001"),
    ]
    assert list(texts.values()) == ["é", "Grüße", "x" * 300, "y", "a,c", "YQAAAA==", "AP8=", ""]
    assert set(nothing.values()) == {None}


@_on_each_server("images")
def test_rows_may_lack_columns_and_have_none_at_all(capture: BinlogCapture) -> None:
    changes = capture.changes()
    assert [(each.event.value, each.before, each.after, each.unavailable) for each in changes] == [
        ("insert", None, {}, ("a", "b", "c")),
        ("update", {"a": 3}, {"a": 3, "b": "x"}, ("b", "c")),
        ("delete", {"a": 3}, None, ("b", "c")),
        ("insert", None, {"a": 1, "b": "x", "c": 1}, ()),
        ("update", {"a": 1, "c": 1}, {"a": 1, "c": 2}, ("b",)),
    ]


@_on_each_server("definitions")
def test_definitions_change_from_one_row_to_the_next(capture: BinlogCapture) -> None:
    assert _seen(capture.changes()) == [
        ("t", "insert", None, {"id": 1, "a": 1}),
        ("t", "insert", None, {"b": "b", "id": 2, "a": 2}),
        ("t", "insert", None, {"id": 3, "c": "three"}),
        ("t", "truncate", None, None),
        ("made", "insert", None, {"one": 1}),
        ("made", "insert", None, {"one": 2}),
    ]


@_on_each_server("xa")
def test_transactions_in_two_phases_come_when_they_are_committed(capture: BinlogCapture) -> None:
    assert _seen(capture.changes()) == [("t", "insert", None, {"id": 1}), ("t", "insert", None, {"id": 3})]


@_on_each_server("compressed")
def test_compressed_logs_are_unpacked(capture: BinlogCapture) -> None:
    old = [{"id": 1, "a": "x" * 1000}, {"id": 2, "a": "y" * 1000}]
    new = [{"id": 1, "a": "z" * 1000}, {"id": 2, "a": "z" * 1000}]
    assert _seen(capture.changes()) == [
        *(("t", "insert", None, row) for row in old),
        *(("t", "update", was, row) for was, row in zip(old, new, strict=True)),
        *(("t", "delete", row, None) for row in new),
    ]


@_on_each_server("documents")
def test_partial_updates_of_documents_are_put_together(capture: BinlogCapture) -> None:
    first, *updates, last = capture.changes()
    document = first.row["a"]
    assert document == {"a": [1, -2, 2.5, True, None, {"ü": "x"}], "n": 1, "pad": "x" * 300}
    expected = [
        {**document, "n": {"deep": [1, 2]}, "added": 7},
        {**document, "n": {"deep": [1, 2]}, "added": 7, "a": document["a"][1:]},
        {**document, "n": {"deep": [1, 2]}, "added": 7, "a": ["first", *document["a"][1:]]},
    ]
    assert [each.row["a"] for each in updates] == expected
    number, moment, day, clock, binary = last.row["a"]
    assert (number, moment, day, clock) == (
        *(12.5, "2026-11-22 10:00:00.500000", "2026-11-22", "-10:00:00.000000"),
    )
    lines = binary.split("\n")
    assert (binary[:14], len(lines), len(lines[0])) == ("base64:type15:", 2, 14 + 76)


@_on_each_server("catalogue")
def test_what_mariadbs_log_leaves_open_is_completed(capture: BinlogCapture) -> None:
    assert _seen(capture.changes()) == [
        (
            *("t", "insert", None),
            {
                "a": "123e4567-e89b-12d3-a456-426655440000",
                "b": "2001:db8::ff",
                "c": "192.0.2.1",
                "d": [1],
                "e": "eAAAAAAAAAAAAAAAAAAAAA==",
            },
        ),
        ("u", "insert", None, {"id": 1, "a": "a"}),
        ("u", "update", {"id": 1, "a": "a"}, {"id": 1, "a": "b"}),
        ("u", "delete", {"id": 1, "a": "b"}, None),
        (
            *("v", "insert", None),
            {
                "a": "2026-11-22T10:00:00.500000",
                "b": "2026-11-22T10:00:00.250000+00:00",
                "c": "-10:00:00.000001",
                "d": "2026-11-22T10:00:00",
                "e": "end",
            },
        ),
    ]


@pytest.mark.parametrize("capture", _ALL, ids=lambda each: f"{each.scenario}-{each}")
def test_what_a_task_receives_is_json(capture: BinlogCapture) -> None:
    for change in capture.changes():
        as_json = json.loads(change.to_json())
        assert (as_json["table"], as_json["event"]) == (change.table, change.event.value)
