"""Recent changes without a server: what is noted, and why not; how much, in which form, and what is left out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from cdc_tasks import BinlogRouter, EventType, RowChange
from cdc_tasks.routing.predicates import changed
from harness.waiting import wait_until
from listener.control.recent import writer as writer_module
from listener.control.recent.block import BlockError, OpenBlock, entries_of, text_of
from listener.control.recent.budget import Budget
from listener.control.recent.entries import Entry, Fate, LeftOut, NotedChange, Why
from listener.control.recent.noting import InForce, Noter, TableKeys, left_out
from listener.control.recent.reader import Place, RecentReader, Sought
from listener.control.recent.store import Memory, Numbered
from listener.control.recent.words import fate_told, left_out_told
from listener.control.recent.writer import RecentChanges
from listener.core.publisher import BrokerAwayError
from listener.core.source import Batch
from listener.postgres.codec.builtin_types import BUILTIN
from listener.postgres.codec.change import Transaction, WALChange
from listener.postgres.codec.table import Column, Table

_BEGAN = datetime(2026, 11, 26, 14, tzinfo=UTC)
_KEYS = TableKeys(dict)


def _change(number: int, event: EventType = EventType.INSERT, **row: Any) -> RowChange:
    return RowChange(
        id=f"abc-{number}-0",
        schema="public",
        table="items",
        event=event,
        before=None,
        after={"id": number, "secret": "hidden", **row},
        position=f"0/{number:X}:0",
        committed_at=_BEGAN + timedelta(seconds=number),
    )


def _router() -> BinlogRouter:
    router = BinlogRouter()
    rows = [EventType.INSERT, EventType.UPDATE, EventType.DELETE]
    router.register("public", "items", rows, "all")
    router.register("public", "items", "update", "of_status", when=changed("status"))
    router.register("public", "items", rows, "first", args=["id"], when=lambda change: change.row["id"] < 3)
    router.register("public", "items", rows, "fails", args=lambda change: [change.row["none"]])
    router.register("public", "items", rows, "once", args=lambda _: ["same"], coalesce=True)
    router.register("public", "items", "delete", "even", even_muted=True)
    return router


def _noted(
    changes: Sequence[Any], router: BinlogRouter | None = None, in_force: InForce | None = None
) -> list[NotedChange]:
    """Return the changes as they are read again."""
    routes, block = router or _router(), OpenBlock()
    for each in Noter(routes, _KEYS).entries(changes, list(routes.tasks_for(changes)), in_force or InForce()):
        block.add(each)
    found = entries_of(text_of(block.packed()))
    return [each for each in found if isinstance(each, NotedChange)]


def _fates(change: NotedChange) -> dict[str, str]:
    return {each.route.task: each.fate.value for each in change.routes}


def test_a_change_says_what_it_fired_and_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDC_CONTEXT_SHOWN", "user_id")
    changes = [replace(_change(1), context={"user_id": 7, "mail": "hidden"}), _change(2), _change(5)]
    first, second, third = _noted(changes)
    assert _fates(first) == {
        "all": "fired",
        "first": "fired",
        "fails": "parked",
        "once": "fired",
        "of_status": "event",
        "even": "event",
    }
    assert _fates(second)["once"] == "coalesced"
    assert _fates(third)["first"] == "when"
    assert (first.id, first.position, first.key, first.context) == (
        *("abc-1-0", "0/1:0"),
        {"id": 1},
        {"user_id": 7, "mail": None},
    )
    assert first.committed_at == changes[0].committed_at
    words = {told.task: told for told in (fate_told(second, each) for each in second.routes)}
    assert words["once"].words == "coalesced: one task with the change abc-1-0"
    assert words["fails"].words == "parked: KeyError"
    assert words["of_status"].words.startswith("it is for update (tests/unit/test_recent_changes.py:")
    assert words["all"].task_id == f"abc-2-0-{_router().routes[0].id}"
    assert words["once"].task_id == ""
    assert b"hidden" not in text_of(_block(Noter(_router(), _KEYS).entries(changes, [], InForce())))


def _block(entries: Sequence[Entry]) -> bytes:
    block = OpenBlock()
    for each in entries:
        block.add(each)
    return block.packed()


def test_what_a_person_told_the_listener_is_said() -> None:
    router = _router()
    everything, once = router.routes[0], router.routes[4]
    in_force = InForce({everything.id}, {once.id: _BEGAN + timedelta(seconds=1)})
    first, second = _noted([_change(1), _change(2)], router, in_force)
    assert (_fates(first)["all"], _fates(first)["once"]) == ("waits", "skipped")
    assert (_fates(second)["all"], _fates(second)["once"]) == ("waits", "fired")  # committed after that time


_COLUMNS = [("id", 20), ("v", 25), ("status", 25)]
_TABLE = Table(
    "public", "items", [Column(name, BUILTIN[oid], key=name == "id") for name, oid in _COLUMNS], identity="d"
)


def test_updates_have_the_columns_that_changed_and_both_keys() -> None:
    commit = Transaction(0x100, 800_000_000_000_000, "source", "2@")
    whole = WALChange(_TABLE.update, (b"1", b"a", b"x"), (b"1", b"a", b"y"), commit, 0)
    moved = WALChange(_TABLE.update, (b"1", b"a", b"x"), (b"2", b"b", b"x"), commit, 1)
    alone = WALChange(_TABLE.update_alone, None, (b"1", b"a", b"y"), commit, 2)
    by_key = WALChange(_TABLE.update_by_key, (b"1", None, None), (b"9", b"a", b"y"), commit, 3)
    gone = WALChange(_TABLE.delete_by_key, (b"1", None, None), None, commit, 4)
    found = _noted([whole, moved, alone, by_key, gone])
    assert [each.columns for each in found] == [("status",), ("id", "v"), None, None, None]
    assert [(each.key, each.old_key) for each in found] == [
        ({"id": 1}, None),
        ({"id": 2}, {"id": 1}),
        ({"id": 1}, None),
        ({"id": 9}, {"id": 1}),
        ({"id": 1}, None),
    ]
    assert [(each.id, each.position) for each in found] == [
        (each.id, each.position) for each in (whole, moved, alone, by_key, gone)
    ]
    muted = WALChange(_TABLE.delete_by_key, (b"1", None, None), None, commit.muted(), 5)
    assert _fates(_noted([muted])[0]) == {
        "all": "muted",
        "first": "muted",
        "fails": "muted",
        "once": "muted",
        "even": "fired",
        "of_status": "event",
    }


# --- How much ---------------------------------------------------------------------------------------------


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_budget_is_a_share_of_the_time_and_comes_back_in_stretches() -> None:
    clock = _Clock()
    budget = Budget(share=0.01, most=0.1, clock=clock)
    assert budget.allowed(1_000) == 1_000  # a burst
    budget.spend(0.05, 0.05, 1_000)
    allowed = budget.allowed(10_000)
    assert 0 < allowed < 10_000
    budget.spend_elsewhere(0.05)
    clock.now = 4.0  # 0.04 s are there again: not half of the most
    assert budget.allowed(1) == 0
    clock.now = 6.0
    assert budget.allowed(100) == 100
    took = 0.0
    while (
        clock.now < 1_000.0
    ):  # a flood: batches of 1,000 a hundred times a second, on a machine that is busy
        clock.now += 0.01
        if allowed := budget.allowed(1_000):
            cpu = 20e-6 * allowed
            took += 3 * cpu
            budget.spend(cpu, 3 * cpu, allowed)
    assert 0.009 * 1_000 < took < 0.0115 * 1_000  # of the time


class _OnlyAsked(Sequence[Any]):
    """A batch's changes of which nobody looks at more than a few."""

    def __init__(self, changes: list[RowChange]) -> None:
        self._changes, self.looks = changes, 0

    def __len__(self) -> int:
        return len(self._changes)

    def __getitem__(self, place: Any) -> Any:
        self.looks += 1
        return self._changes[place]

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("each change is looked at")


def test_what_is_over_the_budget_costs_nothing_per_change() -> None:
    batch = Batch(_OnlyAsked([_change(number) for number in range(1, 1_001)]), "1000")
    spent = Budget(share=0.0, most=0.0)
    recent = _recent(_Store(), spent)
    fired: Iterator[Any] = iter(())
    assert recent.note(batch, fired) is fired
    assert batch.changes.looks <= 3  # type: ignore[attr-defined]
    recent.close()


# --- In which form ------------------------------------------------------------------------------------------


def test_a_damaged_or_foreign_block_is_told_and_the_others_are_read() -> None:
    blocks = [_block(_entries_of([_change(number)])) for number in range(1, 5)]
    for wrong in (b"", b"foreign", blocks[0][:-1], blocks[0][:40] + b"x" + blocks[0][41:]):
        with pytest.raises(BlockError):
            text_of(wrong)
    with pytest.raises(BlockError):
        entries_of(b'{"entries": [[0, 1]]}')
    store = _Store([blocks[0], blocks[1][:-4], b"\x00foreign", blocks[3]])
    page = _reader(store).page(Sought())
    assert [entry.id for _, entry in page.entries if isinstance(entry, NotedChange)] == ["abc-4-0", "abc-1-0"]
    assert page.unreadable == 2


def _entries_of(changes: Sequence[Any]) -> list[Entry]:
    return Noter(_router(), _KEYS).entries(changes, [], InForce())


def _reader(store: Any) -> RecentReader:
    return RecentReader(store)


def test_changes_are_found_by_row_person_table_time_and_id_and_by_pages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CDC_CONTEXT_SHOWN", "user_id, who")
    changes = [
        replace(_change(number, name=f"n{number}"), context={"user_id": number % 3, "who": 'a "é" b'})
        for number in range(1, 301)
    ]
    store = _Store([_block(_entries_of(changes[start : start + 100])) for start in (0, 100, 200)])
    reader = _reader(store)

    def ids(**sought: Any) -> list[int]:
        page = reader.page(Sought(**sought), limit=1_000)
        return [int(each.id.split("-")[1]) for _, each in page.entries if isinstance(each, NotedChange)]

    assert ids() == list(range(300, 0, -1))
    assert ids(row=(("id", "17"),)) == [17]
    assert ids(row=(("secret", "hidden"),)) == []
    assert ids(who=("user_id", "1"), until=_BEGAN + timedelta(seconds=8)) == [7, 4, 1]
    assert len(ids(who=("", 'a "é" b'))) == 300
    assert ids(who=("user_id", "9")) == []
    assert ids(table=("public", "others")) == []
    assert ids(since=_BEGAN + timedelta(seconds=299)) == [300, 299]
    assert ids(ids=frozenset({"abc-200-0", "abc-7-1"})) == [200]
    assert ids(event="delete") == []
    seen, before = list[int](), None
    while True:
        page = reader.page(Sought(), before=before, limit=70)
        seen += [int(each.id.split("-")[1]) for _, each in page.entries if isinstance(each, NotedChange)]
        if page.more is None:
            break
        before = Place.parse(str(page.more))
    assert seen == list(range(300, 0, -1))
    assert Place.parse("nonsense") is None


def test_what_is_not_noted_stands_where_it_is_missing() -> None:
    block = OpenBlock()
    entries = _entries_of([_change(1), _change(9)])
    block.add(entries[0])
    for first, last in ((2, 4), (5, 8)):  # two batches of a flood: one thing to say
        block.leave_out(left_out([_change(number) for number in range(first, last + 1)], Why.RATE))
    block.add(entries[1])
    reader = _reader(_Store([block.packed()]))
    (_, newest), (_, between), (_, oldest) = reader.page(Sought()).entries
    assert isinstance(between, LeftOut)
    assert isinstance(oldest, NotedChange)
    assert isinstance(newest, NotedChange)
    assert (between.count, between.first, between.last) == (7, "0/2:0", "0/8:0")
    assert left_out_told(between).startswith("7 changes of public.items not noted: more came")
    assert (oldest.id, newest.id) == ("abc-1-0", "abc-9-0")
    # Who looks for a row is told that it may be among those.
    found = reader.page(Sought(row=(("id", "1"),)))
    assert (len(found.entries), found.left_out) == (1, 7)
    assert reader.page(Sought(row=(("id", "77"),))).left_out == 7
    assert reader.page(Sought(since=_BEGAN + timedelta(seconds=9))).left_out == 0


# --- Writing ------------------------------------------------------------------------------------------------


class _Store:
    """Stands for Redis."""

    def __init__(self, blocks: Sequence[bytes] = ()) -> None:
        self.kept = list(blocks)
        self.tail = b""
        self.open = False
        self.error: Exception | None = None
        self.used = Memory(0, None)
        self.halved = 0
        self.limits = set[int]()
        self.lock = threading.Lock()

    def is_open(self) -> bool:
        self._fail()
        return self.open

    def memory(self) -> Memory:
        return self.used

    def halve(self) -> None:
        self.halved += 1

    def write(
        self, blocks: Sequence[bytes], tail: bytes, limit: int, *, is_first: bool, is_last: bool = False
    ) -> None:
        self._fail()
        with self.lock:
            if is_first and self.tail:
                self.kept.append(self.tail)
            self.kept += blocks
            self.tail, self.open = tail, not is_last
            self.limits.add(limit)

    def blocks(self, newest: int | None = None) -> Iterator[Numbered]:
        with self.lock:
            found = list(enumerate([*self.kept, *filter(None, [self.tail])]))
        yield from (Numbered(*each) for each in reversed(found) if newest is None or each[0] <= newest)

    def close(self) -> None:
        pass

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "_EVERY", 0.01)


def _recent(store: Any, budget: Budget | None = None) -> RecentChanges:
    unlimited = Budget(share=1.0, most=600.0)  # on a busy machine, too
    recent = RecentChanges(store, _router(), max_bytes=10**6, read_keys=dict, budget=budget or unlimited)
    recent.attach()
    return recent


def _goes_by(recent: RecentChanges, *numbers: int, confirmed: bool = True) -> None:
    changes = [_change(number) for number in numbers]
    batch = Batch(changes, str(numbers[-1]))
    assert len(list(recent.note(batch, _router().tasks_for(changes)))) > 0
    if confirmed:
        recent.confirmed(batch.position)


def _seen(store: _Store) -> list[Any]:
    """Return the numbers of the changes, and what is left out, the oldest first."""
    page = _reader(store).page(Sought(), limit=10_000)
    return [
        (each.why.value, each.count) if isinstance(each, LeftOut) else int(each.id.split("-")[1])
        for _, each in reversed(page.entries)
    ]


def _waits_for(condition: Callable[[], bool]) -> None:
    wait_until(condition, timeout=30, what="the thread")


@pytest.mark.usefixtures("often")
def test_only_what_the_broker_holds_is_there_and_once() -> None:
    store = _Store()
    recent = _recent(store)
    _goes_by(recent, 1, 2)
    _goes_by(recent, 3, confirmed=False)
    recent.attach()  # the broker was away: what it does not hold comes again
    _goes_by(recent, 3, 4)
    _waits_for(lambda: recent.noted == 4)
    assert _seen(store) == [1, 2, 3, 4]
    recent.close()
    assert not store.open
    # The next listener goes on behind it; one that was killed is told.
    again = _recent(store)
    _goes_by(again, 5)
    _waits_for(lambda: again.noted == 1)
    assert _seen(store) == [1, 2, 3, 4, 5]
    third = _recent(store)
    _goes_by(third, 6)
    _waits_for(lambda: third.noted == 1)
    assert _seen(store) == [1, 2, 3, 4, 5, ("ended", None), 6]
    again.close()
    third.close()


@pytest.mark.usefixtures("often")
def test_what_redis_does_not_take_is_dropped_counted_and_told_once() -> None:
    store = _Store()
    recent = _recent(store)
    _goes_by(recent, 1)
    _waits_for(lambda: recent.noted == 1)
    with capture_logs() as logs:
        store.error = BrokerAwayError("gone")
        for number in (2, 3):
            _goes_by(recent, number)
            _waits_for(lambda: recent.left_out["store"] == number - 1)  # noqa: B023 - it is called at once
        store.error = None
        _goes_by(recent, 4)
        _waits_for(lambda: recent.noted == 2)
    assert _seen(store) == [1, ("store", 2), 4]
    assert [each["event"] for each in logs] == ["recent_changes_failed", "recent_changes_work_again"]
    recent.close()


@pytest.mark.usefixtures("often")
def test_memory_that_others_need_is_given_back() -> None:
    store = _Store()
    store.used = Memory(950_000, 1_000_000)
    recent = _recent(store)
    _goes_by(recent, 1)
    _waits_for(lambda: recent.left_out["store"] == 1 and store.halved > 0)
    store.used = Memory(100_000, 1_000_000)
    _goes_by(recent, 2)
    _waits_for(lambda: recent.noted == 1)
    assert _seen(store) == [("store", 1), 2]
    assert store.limits == {100_000}  # a tenth of maxmemory, and not the million of the setting
    recent.close()


@pytest.mark.usefixtures("often")
def test_a_thousand_changes_make_a_block() -> None:
    store = _Store()
    recent = _recent(store)
    for first in range(1, 2_501, 10):
        _goes_by(recent, *range(first, first + 10))
    _waits_for(lambda: recent.noted == 2_500)
    recent.close()
    assert len(store.kept) == 2
    assert _seen(store) == list(range(1, 2_501))


def test_every_fate_has_its_words() -> None:
    (change,) = _noted([_change(1)])
    for fate in Fate:
        assert fate_told(change, change.routes[0]._replace(fate=fate)).task == "all"
