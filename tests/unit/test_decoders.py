"""Both plugins' decoders on what real servers sent: the same rows through each."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from listener.postgres.codec.decoder import Begin, Commit, WALPosition
from tests.support.postgres.captures import SCENARIOS, Capture, captures, scenarios_of

if TYPE_CHECKING:
    from listener.postgres.codec.change import WALChange

Row = dict[str, Any]


def of_scenario(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("capture", captures(name), ids=str)


every_capture = pytest.mark.parametrize(
    "capture",
    [capture for name in SCENARIOS for capture in captures(name)],
    ids=lambda each: f"{each.scenario}-{each}",
)


def test_every_scenario_was_recorded_on_each_server_and_plugin() -> None:
    recorded = {(capture.scenario, str(capture)) for name in SCENARIOS for capture in captures(name)}
    on = [("pgoutput", 15), ("pgoutput", 18), ("wal2json", 15)]
    assert recorded == {
        (name, f"{plugin}-{version}") for plugin, version in on for name in scenarios_of(plugin)
    }


@of_scenario("rows")
def test_rows_inserted_updated_and_deleted(capture: Capture) -> None:
    assert [told(change) for change in capture.changes()] == [
        ("insert", None, {"id": 1, "title": "first", "done": False}, ()),
        ("insert", None, {"id": 2, "title": None, "done": False}, ()),
        ("update", None, {"id": 1, "title": "better", "done": True}, ()),
        ("update", {"id": 2}, {"id": 3, "title": None, "done": False}, ("title", "done")),
        ("delete", {"id": 3}, None, ("title", "done")),
    ]


@of_scenario("identities")
def test_replica_identity_full_gives_the_whole_row_before(capture: Capture) -> None:
    changes = [told(change) for change in capture.changes() if change.table == "full"]
    assert changes[2:] == [
        ("update", {"id": 1, "note": "a"}, {"id": 1, "note": "b"}, ()),
        ("update", {"id": 2, "note": None}, {"id": 2, "note": "b"}, ()),
        ("delete", {"id": 1, "note": "b"}, None, ()),
        ("delete", {"id": 2, "note": "b"}, None, ()),
    ]


@of_scenario("identities")
def test_replica_identity_index_gives_the_columns_of_the_index(capture: Capture) -> None:
    changes = [told(change) for change in capture.changes() if change.table == "by_index"]
    assert changes[1:] == [
        ("update", None, {"id": 1, "code": "x", "note": "b"}, ()),
        ("update", {"code": "x"}, {"id": 1, "code": "y", "note": "b"}, ("id", "note")),
        ("delete", {"code": "y"}, None, ("id", "note")),
    ]


@of_scenario("identities")
def test_replica_identity_nothing_still_gives_inserted_rows(capture: Capture) -> None:
    changes = [told(change) for change in capture.changes() if change.table == "nothing"]
    assert changes == [("insert", None, {"id": 1, "note": "a"}, ())]


@of_scenario("toast")
def test_an_unchanged_toast_value_is_missing_and_named_not_null(capture: Capture) -> None:
    changes = [told(change) for change in capture.changes() if change.table == "pages"]
    assert changes[2:] == [
        ("update", None, {"id": 1, "title": "b"}, ("body",)),
        ("update", None, {"id": 2, "title": "b", "body": "body"}, ()),
        ("update", {"id": 1}, {"id": 3, "title": "b"}, ("title", "body")),
        ("update", None, {"id": 3, "title": "b", "body": None}, ()),
    ]


@of_scenario("toast")
def test_with_replica_identity_full_an_unchanged_toast_value_is_taken_from_the_old_row(
    capture: Capture,
) -> None:
    changes = [told(change) for change in capture.changes() if change.table == "full"]
    body = "long " * 500
    assert changes[1:] == [
        ("update", {"id": 1, "title": "a", "body": body}, {"id": 1, "title": "b", "body": body}, ())
    ]


@of_scenario("truncate")
def test_a_truncate_of_several_tables_is_a_change_of_each(capture: Capture) -> None:
    changes = capture.changes()
    assert {change.table for change in changes} == {"parents", "children", "others"}
    assert [told(change) for change in changes] == [("truncate", None, None, ())] * 3
    assert [WALPosition.parse(change.position).ordinal for change in changes] == [0, 1, 2]


@of_scenario("partitions")
def test_partitions_are_reported_as_their_root(capture: Capture) -> None:
    changes = capture.changes()
    assert {change.table for change in changes} == {"events"}
    assert [told(change) for change in changes] == [
        ("insert", None, {"id": 1, "note": "a"}, ()),
        ("update", None, {"id": 1, "note": "b"}, ()),
        ("delete", {"id": 1}, None, ("note",)),  # moved to the other partition
        ("insert", None, {"id": 101, "note": "b"}, ()),
        ("delete", {"id": 101}, None, ("note",)),
        ("truncate", None, None, ()),
    ]


@of_scenario("definitions")
def test_rows_follow_the_table_s_definition_of_their_time(capture: Capture) -> None:
    assert [(change.table, change.after) for change in capture.changes()] == [
        ("things", {"id": 1, "a": "one"}),
        ("things", {"id": 2, "a": "two", "b": 2}),
        ("things", {"id": 3, "c": "three", "b": 3}),
        ("things", {"id": 2, "c": "neu", "b": "b2"}),
        ("things", {"id": 1, "b": None}),
        ("items", {"id": 4, "b": "7"}),
        ("items", {"id": 5, "b": "5", "d": True}),
    ]


@of_scenario("names")
def test_names_with_quotes_spaces_percent_signs_and_other_alphabets(capture: Capture) -> None:
    inserted, deleted = capture.changes()
    assert (inserted.schema, inserted.table) == ('Zoë\'s "schema"', "Größe %s, {}")
    assert inserted.after == {"Id.": 1, 'a "b" \\ c %': "größer", "日本": "x"}
    assert deleted.before == {"Id.": 1}
    assert deleted.unavailable == ('a "b" \\ c %', "日本")
    assert json.loads(inserted.to_json(('a "b" \\ c %',)))["after"] == {'a "b" \\ c %': "größer"}


@of_scenario("messages")
def test_logical_messages_are_no_changes(capture: Capture) -> None:
    assert [change.after for change in capture.changes()] == [{"id": 1}, {"id": 2}]


@every_capture
def test_transactions_begin_and_end_in_commit_order(capture: Capture) -> None:
    decoder = capture.decoder()
    ends = [0]
    for payload in capture.payloads():
        boundary = decoder.decode(payload, [])
        if isinstance(boundary, Begin):
            assert boundary.commit_lsn >= ends[-1]
            begun = boundary
        elif isinstance(boundary, Commit):
            assert boundary.end_lsn > begun.commit_lsn
            ends.append(boundary.end_lsn)
    assert len(ends) > 1


@every_capture
def test_a_replay_gives_the_same_ids_and_positions(capture: Capture) -> None:
    first, second = capture.changes(), capture.changes()
    assert [(change.id, change.position) for change in first] == [
        (change.id, change.position) for change in second
    ]
    assert len({change.id for change in first}) == len(first)
    positions = [WALPosition.parse(change.position) for change in first]
    assert positions == sorted(set(positions))


@every_capture
def test_nothing_is_left_out_and_nothing_repeated_wherever_a_reader_resumes(capture: Capture) -> None:
    everything = [change.id for change in capture.changes()]
    for published, change in enumerate(capture.changes(), start=1):
        decoder = capture.decoder()
        decoder.skip_to(WALPosition.parse(change.position))
        rest: list[WALChange] = []
        for payload in capture.payloads():
            decoder.decode(payload, rest)
        assert [each.id for each in rest] == everything[published:]


@every_capture
def test_the_message_to_a_task_has_what_the_change_has(capture: Capture) -> None:
    for change in capture.changes():
        assert json.loads(change.to_json()) == {
            "id": change.id,
            "schema": change.schema,
            "table": change.table,
            "event": change.event.value,
            "before": change.before,
            "after": change.after,
            "unavailable": list(change.unavailable),
            "position": change.position,
            "committed_at": change.committed_at.isoformat(timespec="microseconds"),
        }


def told(change: WALChange) -> tuple[str, Row | None, Row | None, tuple[str, ...]]:
    return change.event.value, change.before, change.after, change.unavailable
