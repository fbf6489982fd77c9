"""What a backfill is, without a server: lines of COPY, routes for reads, progress."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from cdc_tasks import READ, BinlogRouter, EventType, RowChange
from cdc_tasks.testing import row_change
from listener.control.backfills import Backfill, BackfillState, Progress, chosen_routes
from listener.control.commands import CommandRefusedError
from listener.control.first_load import backfill_commands
from listener.core.backfill import BackfillRefusedError, check_where
from listener.postgres.backfill.chunk_reader import split_line


@pytest.mark.parametrize(
    ("line", "row"),
    [
        (b"1\ta b\t\n", [b"1", b"a b", b""]),
        (b"\\N\t\\\\N\t\\\\.\n", [None, b"\\N", b"\\."]),
        (b"a\\tb\\nc\\rd\\be\\ff\\vg\t\\\\x00ff\n", [b"a\tb\nc\rd\be\ff\vg", b"\\x00ff"]),
        ("é日\\\\\n".encode(), ["é日\\".encode()]),
    ],
)
def test_a_line_of_copy_is_the_texts_of_the_row(line: bytes, row: list[bytes | None]) -> None:
    assert split_line(line) == row


@pytest.mark.parametrize("where", ["", " ", "true; SELECT 1", "true -- x", "true /* x */", "a\0b"])
def test_what_could_end_the_statement_is_no_condition(where: str) -> None:
    with pytest.raises(BackfillRefusedError, match="is not a condition"):
        check_where(where)


def test_what_is_offered_after_a_gap_is_what_a_read_tells_something() -> None:
    router = BinlogRouter()
    router.register("public", "loaded", [EventType.ALL, EventType.READ], "tests.index")
    router.register("public", "loaded", EventType.INSERT, "tests.mail")
    router.register("public", "billed", [EventType.INSERT, EventType.DELETE], "tests.bill")
    router.register("public", "billed", EventType.DELETE, "tests.undo")
    router.register("public", "deleted", EventType.DELETE, "tests.undo")
    tables = [("public", name) for name in ("loaded", "billed", "deleted", "other")]
    assert backfill_commands(tables, router.routes) == {
        "public.loaded": "python -m listener backfill public.loaded",
        "public.billed": "python -m listener backfill public.billed --task tests.bill",
    }


def test_a_route_gets_reads_only_if_it_says_so() -> None:
    router = BinlogRouter()
    router.register("public", "t", EventType.ALL, "tests.changes")
    router.register("public", "t", READ, "tests.reads", args=["id"], key="id")
    router.register("public", "t", [EventType.ALL, READ], "tests.both")
    read = row_change("t", READ, after={"id": 1})
    assert [call.route.task for call in router.tasks_for([read])] == ["tests.reads", "tests.both"]  # type: ignore[union-attr]
    insert = row_change("t", "insert", after={"id": 1})
    assert [call.route.task for call in router.tasks_for([insert])] == ["tests.changes", "tests.both"]  # type: ignore[union-attr]
    twin = BinlogRouter().for_reads([router.routes[0]])
    (call,) = twin.tasks_for([read])
    assert (call.route.id, call.route.task) == (router.routes[0].id, "tests.changes")
    assert list(twin.tasks_for([insert])) == []


def test_a_read_is_a_row_change_like_an_insert() -> None:
    read = row_change("t", "read", after={"id": 1}, committed_at=datetime(2026, 11, 26, tzinfo=UTC))
    again = RowChange.from_message(json.loads(read.to_json()))
    assert again == read
    assert (again.row, again.before, again.changed("id")) == ({"id": 1}, None, True)
    with pytest.raises(ValueError, match="read has no old row"):
        row_change("t", "read", before={"id": 1}, after={"id": 1})


def test_the_routes_of_a_backfill_are_those_that_take_reads_or_those_that_are_named() -> None:
    router = BinlogRouter()
    router.register("public", "t", EventType.ALL, "tests.changes")
    with pytest.raises(CommandRefusedError, match=r"No route of public.t takes EventType.READ") as refused:
        chosen_routes(router.routes, "public", "t", [])
    assert "--task tests.changes" in str(refused.value.hint)
    router.register("public", "*", READ, "tests.reads")
    assert [each.task for each in chosen_routes(router.routes, "public", "t", [])] == ["tests.reads"]
    named = ["tests.changes", router.routes[1].id]
    assert [each.task for each in chosen_routes(router.routes, "public", "t", named)] == [
        "tests.changes",
        "tests.reads",
    ]
    with pytest.raises(CommandRefusedError, match=r"the task or the id nobody"):
        chosen_routes(router.routes, "public", "t", ["tests.reads", "nobody"])
    with pytest.raises(CommandRefusedError, match=r"No route watches the table other.t"):
        chosen_routes(router.routes, "other", "t", [])


def _state(progress: Progress, **options: Any) -> BackfillState:
    fields: dict[str, Any] = {
        "id": "a1", "schema": "public", "table": "t", "where": None, "routes": ("r",), "rate": None, "chunk": 10,
        "estimate": 1000, "who": "x@y", "at": "2026-11-26T00:00:00+00:00",
    }  # fmt: skip
    backfill = Backfill(**(fields | options))
    assert Backfill.parse(backfill.to_json()) == backfill
    assert Progress.parse(progress.to_json()) == progress
    return BackfillState(backfill=backfill, progress=progress)


def test_a_backfill_tells_how_far_it_is() -> None:
    begun = Progress(
        last=("5", "ü'"),
        rows=150,
        left_out=50,
        chunks=2,
        started_at="2026-11-26T00:00:00+00:00",
        updated_at="2026-11-26T00:00:10+00:00",
    )
    assert (_state(Progress()).state, _state(Progress()).rate, _state(Progress()).seconds_left) == (
        "waiting",
        None,
        None,
    )
    running = _state(begun)
    assert (running.state, running.rate, running.seconds_left) == ("running", 20.0, 40.0)
    assert _state(begun, state="paused").state == "paused"
    assert not _state(begun, state="paused").is_over
    assert _state(begun, state="failed").is_over
    done = _state(Progress(is_done=True))
    assert (done.state, done.is_over) == ("done", True)
