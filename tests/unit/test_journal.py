"""The journal without a server: once each, gaps that are told, bounds, and a disk that fails."""

from __future__ import annotations

import json
import random
import sqlite3
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from cdc_tasks import BinlogRouter, EventType, RowChange
from cdc_tasks.routing.router import Call, Parked
from listener.control.commands import Command, CommandRefusedError
from listener.control.journal.file import JournalError, JournalledChange
from listener.control.journal.reader import JournalReader
from listener.control.journal.writer import Journal
from listener.control.replays import Replays, fired_by
from listener.core.history import Selection
from listener.postgres.codec.change import Transaction, WALChange
from listener.postgres.codec.table import Column, Table
from listener.postgres.codec.tuple_data import UNCHANGED
from listener.postgres.codec.values import BUILTIN

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_BEGAN = datetime(2026, 11, 26, 14, tzinfo=UTC)


def _change(number: int, **row: Any) -> RowChange:
    return RowChange(
        id=f"id-{number}",
        schema="public",
        table="items",
        event=EventType.INSERT,
        before=None,
        after={"id": number, **row},
        position=f"0/{number:X}:0",
        committed_at=_BEGAN + timedelta(seconds=number),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "directory" / "test.journal"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with_path = _open(path)
    yield with_path
    with_path.close()


def _open(path: Path, *, max_age: float = 1e9, max_bytes: int = 10**9, after: str | None = None) -> Journal:
    journal = Journal(path, max_age=max_age, max_bytes=max_bytes)
    journal.attach(after)
    return journal


def _write(journal: Journal, first: int, last: int, **row: Any) -> None:
    """Write these changes as a batch, whose position is the last number."""
    changes = [_change(number, **row) for number in range(first, last + 1)]
    assert list(journal.record((), changes, str(last))) == []
    journal.flush()


def _numbers(path: Path, **selection: Any) -> list[int]:
    found = JournalReader(path).changes(Selection(**selection))
    return [change.row["id"] for _, change in found if change is not None]


def test_what_comes_again_after_a_crash_is_there_once(path: Path) -> None:
    journal = _open(path)
    for first in range(1, 2000, 7):  # small blocks, which are packed together
        _write(journal, first, first + 6)
    journal.close()
    # The broker has not got the last three batches, and cuts them in another way when they come again.
    journal = _open(path, after="1988")
    _write(journal, 1989, 1991)
    _write(journal, 1992, 2002)
    journal.close()
    assert _numbers(path) == list(range(1, 2003))
    assert JournalReader(path).summary().gaps == ()
    # It has lost much more, and its checkpoint is one that nobody knows.
    journal = _open(path, after="unknown")
    _write(journal, 500, 2100)
    journal.close()
    assert _numbers(path) == list(range(1, 2101))
    assert JournalReader(path).summary().gaps == ()
    assert path.stat().st_mode & 0o777 == 0o600


def test_changes_have_their_context_and_their_place_in_the_transaction(path: Path, journal: Journal) -> None:
    context = {"user_id": 7}
    changes = [
        replace(_change(number), id=f"id-{number // 3}-{number % 3}", context=context if number < 6 else None)
        for number in range(9)
    ]
    for batch in (changes[:4], changes[4:8], changes[8:]):  # a transaction in two batches, and in two blocks
        list(journal.record((), batch, batch[-1].position))
        journal.flush()
    found = [each for _, each in JournalReader(path).changes(Selection()) if each is not None]
    assert [each.context for each in found] == [context] * 6 + [None] * 3
    assert [tuple(each.transaction) for each in found] == [
        (f"id-{number // 3}", number % 3 + 1, number % 3 == 2) for number in range(9)
    ]


_COLUMNS = [("id", 20), ("v", 25), ("tags", 1009), ("at", 1184), ("price", 1700), ("doc", 3802)]
_TABLE = Table(
    "public", "items", [Column(name, BUILTIN[oid], key=name == "id") for name, oid in _COLUMNS], identity="d"
)


def _logged(first: int, count: int, **options: Any) -> list[WALChange]:
    """Return changes as the log has them, three in a transaction."""
    found = []
    for number in range(first, first + count):
        if (number - first) % 3 == 0:
            transaction = Transaction(number, 800_000_000_000_000 + number * 1_000_000, "source", "2@")
            transaction.is_muted = options.get("muted", False)
        row = (
            *(b"%d" % number, None if number % 5 == 0 else b"text \xc3\xa9 %d" % number, b'{a,"b c",NULL}'),
            *(b"2026-11-27 04:44:23.5+00", b"12.50", b'{"a": [1, 2]}'),
        )
        key = (row[0], *[None] * 5)
        kind, old, new = (
            (_TABLE.insert, None, row),
            (_TABLE.update_by_key, key, row),
            (_TABLE.delete_by_key, key, None),
        )[number % 3]
        if options.get("lacks"):
            new = None if new is None else (row[0], UNCHANGED, *row[2:])
        found.append(WALChange(kind, old, new, transaction, number % 3))
    return found


@pytest.mark.parametrize("options", [{}, {"muted": True}, {"lacks": True}])
def test_rows_that_no_route_sends_whole_are_kept_as_they_were_logged(
    path: Path, options: dict[str, Any]
) -> None:
    router = BinlogRouter()
    router.register("public", "items", EventType.ALL, "narrow", columns=["id"], even_muted=True)
    journal = _open(path)
    changes = _logged(0, 1500, **options)
    fired = list(router.tasks_for(changes))
    assert len(fired) == 1500
    assert list(journal.record(fired, changes, "1500")) == fired
    # After a crash the last of them come again.
    journal.close()
    journal = _open(path, after="900")
    list(journal.record(fired[900:], changes[900:], "1500"))
    journal.close()
    with sqlite3.connect(path) as connection:
        sizes = [row[0] for row in connection.execute("SELECT count FROM block ORDER BY first")]
        as_logged = [
            row[0] for row in connection.execute("SELECT substr(data, 1, 4) = X'726F7773' FROM block")
        ]
    connection.close()
    assert sizes == [900, 600]
    assert as_logged == [0, 0 if "lacks" in options else 1]
    found = [change for _, change in JournalReader(path).changes(Selection()) if change is not None]
    assert [each.to_message() for each in found] == [json.loads(each.to_json()) for each in changes]
    assert {each.is_muted for each in found} == {options.get("muted", False)}
    assert _numbers(path, row=(("id", "1300"),)) == [1300]
    assert _numbers(path, row=(("id", "98765"),)) == []
    assert _numbers(path, row=(("tags", '["a", "b c", null]'), ("id", "1200"))) == [1200]


def test_what_another_listener_has_read_is_a_gap(path: Path) -> None:
    _open(path).close()
    journal = _open(path)
    _write(journal, 1, 10)
    journal.close()
    journal = _open(path, after="20")  # a standby has read up to there
    list(journal.record((), [], "21"))
    journal.close()
    assert len(JournalReader(path).summary().gaps) == 1  # known already, although nothing was committed since
    journal = _open(path, after="21")
    with capture_logs() as logs:
        _write(journal, 22, 25)
    _write(journal, 26, 30)
    journal.close()
    assert [each["event"] for each in logs] == ["journal_gap"]
    (gap,) = JournalReader(path).summary().gaps
    assert gap == JournalReader(path).summary().missing(Selection(since=gap.since))[0]
    assert _numbers(path) == [*range(1, 11), *range(22, 31)]


def test_it_is_bounded_by_size_and_says_from_when_on_it_is_complete(path: Path) -> None:
    journal = _open(path, max_bytes=1_000_000)
    text = random.Random(1).randbytes(60_001 * 20).hex()
    for first in range(1, 60_000, 1000):
        batch = [
            _change(number, text=text[number * 20 : number * 20 + 20])
            for number in range(first, first + 1000)
        ]
        list(journal.record((), batch, str(first)))
    journal.close()
    summary = JournalReader(path).summary()
    assert summary.bytes <= 1_000_000
    assert path.stat().st_size < 1_500_000
    assert summary.end == 60_001
    assert 1 < summary.first < 59_000
    assert _numbers(path) == list(range(summary.first, 60_001))
    early = Selection(since=_BEGAN + timedelta(seconds=1))
    (missing,) = summary.missing(early)
    assert missing.until == summary.since == _BEGAN + timedelta(seconds=summary.first - 1, microseconds=1)
    assert summary.missing(Selection(since=summary.since)) == []


def test_it_is_complete_from_its_beginning_on(path: Path) -> None:
    journal = _open(path)
    list(journal.record((), [], "0"))
    journal.flush()
    made = JournalReader(path).summary().since
    later = RowChange.from_message({**_change(1).to_message(), "committed_at": "2100-01-01T00:00:00+00:00"})
    list(journal.record((), [later], "1"))
    journal.close()
    assert JournalReader(path).summary().missing(Selection(since=made)) == []


def test_what_is_too_old_is_dropped(path: Path) -> None:
    journal = _open(path, max_age=1.0)
    _write(journal, 1, 1000)
    journal._tidied_at = float("-inf")
    _write(journal, 1001, 1002)
    journal.close()
    assert _numbers(path) == []


def test_a_disk_that_is_full_costs_a_gap_and_not_the_stream(path: Path) -> None:
    journal = _open(path)
    _write(journal, 1, 10)
    journal._connection.execute("PRAGMA max_page_count = 1")
    with capture_logs() as logs:
        _write(journal, 11, 4000, text="x" * 50)
        _write(journal, 4001, 4002)
    assert [each["event"] for each in logs] == ["journal_failed"]
    journal._connection.execute("PRAGMA max_page_count = 1000000")
    journal._failed_at = float("-inf")  # it is time to try again
    with capture_logs() as logs:
        _write(journal, 4003, 4010)
    journal.close()
    assert [each["event"] for each in logs] == ["journal_gap", "journal_works_again"]
    assert _numbers(path) == [*range(1, 11), *range(4003, 4011)]
    assert len(JournalReader(path).summary().gaps) == 1


def test_changes_are_found_by_row_time_and_table(path: Path, journal: Journal) -> None:
    rows = [{"name": 'a "quoted" é'}, {"name": "plain", "n": None}, {"name": "plain", "n": 5}]
    list(journal.record((), [_change(number, **row) for number, row in enumerate(rows, 1)], "3"))
    journal.flush()
    assert _numbers(path, row=(("id", "2"),)) == [2]
    assert _numbers(path, row=(("name", 'a "quoted" é'),)) == [1]
    assert _numbers(path, row=(("name", "plain"), ("n", "5"))) == [3]
    assert _numbers(path, row=(("n", "null"),)) == [2]
    assert _numbers(path, row=(("id", "12"),)) == []
    assert _numbers(path, tables=("public.others",)) == []
    second = _BEGAN + timedelta(seconds=2)
    assert _numbers(path, since=second) == [2, 3]
    assert _numbers(path, until=second) == [1]


def test_what_is_no_journal_is_an_error_with_a_cure(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="There is no journal"):
        JournalReader(tmp_path / "none")
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"no database" * 1000)
    with pytest.raises(JournalError, match="cannot be used") as caught:
        _open(damaged)
    assert f"mv {damaged}" in str(caught.value.hint)
    with pytest.raises(JournalError, match="cannot be read"):
        JournalReader(damaged).summary()
    with pytest.raises(JournalError, match="cannot be used"):
        _open(tmp_path / "damaged" / "below")


def test_a_replay_keeps_ids_or_gives_new_ones_and_groups_only_its_own() -> None:
    router = BinlogRouter()
    router.register("public", "items", "insert", "one", args=["id"])
    router.register("public", "items", "insert", "batched", batch=2, args=["id"])
    router.register("public", "items", "insert", "coalesced", args=lambda _change: [1], coalesce=True)
    replayed = router.for_replay(router.routes, "r1")
    changes: Any = [_journalled(number) for number in (1, 2, 3)]
    live = _ids(router.tasks_for(changes))
    fired = fired_by(replayed, changes, new_ids=None)
    counts = [each.route.task for each in fired]
    assert (counts.count("one"), counts.count("batched"), counts.count("coalesced")) == (3, 2, 1)
    assert {each.route.replay for each in fired} == {"r1"}
    assert not any(each.route.is_grouped for each in fired)
    assert _ids(fired, "one") <= live
    fresh = _ids(fired_by(replayed, changes, new_ids="r1"), "one")
    assert len(fresh) == 3
    assert not fresh & live


def test_a_replay_without_anything_to_read_is_refused_and_does_not_end_the_listener() -> None:
    router = BinlogRouter()
    router.register("public", "items", "insert", "one")
    nothing: Any = object()

    def no_history(_routes: Any) -> Any:
        raise JournalError("There is no journal.", hint="Set CDC_JOURNAL.", code="journal_missing")

    replays = Replays(nothing, nothing, router.routes, no_history, is_paused=lambda _: False)
    arguments = {"since": "2026-11-26T14:00:00+00:00", "until": "2026-11-26T16:00:00+00:00"}
    more: dict[str, Any] = {"tables": [], "row": [], "routes": ["one"], "accept_gap": False}
    with pytest.raises(CommandRefusedError, match="There is no journal") as caught:
        replays.verbs["replay"](Command(verb="replay", arguments={**arguments, **more}))
    assert (caught.value.code, caught.value.hint) == ("journal_missing", "Set CDC_JOURNAL.")


def _ids(fired: Iterable[Call | Parked], task: str = "") -> set[str]:
    return {each.id for each in fired if isinstance(each, Call) and task in {"", each.route.task}}


def _journalled(number: int) -> Any:
    return JournalledChange.from_message(_change(number).to_message())


def test_the_file_is_an_ordinary_database_of_sqlite(path: Path, journal: Journal) -> None:
    _write(journal, 1, 3)
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT first, count FROM block").fetchall() == [(1, 3)]
    connection.close()
