"""What a snapshot shows, by a transaction's number of 32 bits; and how often the server is asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from listener.core import visibility as waiting
from listener.core.source import SourceLostError
from listener.core.visibility import VisibilityWait
from listener.core.wakeup import Wakeup
from listener.mysql import visibility as mysql_visibility
from listener.mysql.client.server import Server, prepared_names
from listener.mysql.codec.change import Transaction
from listener.mysql.visibility import visibility_of
from listener.postgres.client import visibility
from listener.postgres.client.visibility import Snapshot, Visibility

if TYPE_CHECKING:
    from collections.abc import Iterator

    from listener.mysql.visibility import Visibility as BinlogVisibility

_XIDS = 1 << 32


@pytest.mark.parametrize(
    ("text", "shown", "hidden"),
    [
        ("10:10:", [3, 9], [10, 11]),
        ("10:14:10,12", [9, 11, 13], [10, 12, 14, 20]),
        # The log's numbers have started again from 3, those before are of the end of the last round.
        (f"{_XIDS - 2}:{_XIDS + 5}:{_XIDS - 2},{_XIDS + 3}", [_XIDS - 9, _XIDS - 1, 4], [_XIDS - 2, 3, 5, 9]),
        (f"{3 * _XIDS + 3}:{3 * _XIDS + 3}:", [_XIDS - 1, _XIDS - 2_000_000_000], [3, 2_000_000_000]),
    ],
)
def test_a_snapshot_shows_what_has_ended(text: str, shown: list[int], hidden: list[int]) -> None:
    snapshot = Snapshot.parse(text)
    assert [xid for xid in (*shown, *hidden) if snapshot.shows(xid)] == shown


@given(
    xmin=st.integers(min_value=1 << 33, max_value=1 << 40),
    running=st.sets(st.integers(0, 50), max_size=10),
    beyond=st.integers(0, 60),
    age=st.integers(-1000, (1 << 31) - 2000),
)
def test_32_bits_say_the_same_as_64(xmin: int, running: set[int], beyond: int, age: int) -> None:
    xip = frozenset(xmin + each for each in running if each < beyond)
    full = xmin - age
    expected = full < xmin or (full < xmin + beyond and full not in xip)
    assert Snapshot(xmin, xmin + beyond, xip).shows(full % _XIDS) is expected


class _Server:
    """Answers with one snapshot after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: str) -> None:
        self._answers: Iterator[str] = iter(answers)
        self.asked = 0
        self.now = 0.0
        monkeypatch.setattr(visibility, "monotonic", lambda: self.now)

    def cursor(self) -> Self:
        return self

    def execute(self, _: str) -> None:
        self.asked += 1

    def fetchone(self) -> tuple[str]:
        return (next(self._answers),)

    @property
    def visibility(self) -> Visibility:
        session: Any = self
        return Visibility(lambda: session)


def test_the_server_is_asked_only_about_what_is_newer_than_the_last_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = _Server(monkeypatch, "100:100:", "100:120:105", "121:121:")
    seen = server.visibility
    assert [seen.shows(xid) for xid in (90, 99, 7)] == [True, True, True]
    assert server.asked == 1
    assert [seen.shows(xid) for xid in (104, 119, 99)] == [True, True, True]
    assert server.asked == 2
    assert seen.shows(105)
    assert server.asked == 3


def test_an_old_answer_is_not_used_as_xids_may_have_wrapped_around(monkeypatch: pytest.MonkeyPatch) -> None:
    later = 100 + (1 << 31) + 50
    server = _Server(monkeypatch, "100:100:", f"{later}:{later + 1}:{later}", f"{later + 1}:{later + 1}:")
    seen = server.visibility
    assert seen.shows(99)
    server.now += 100_000
    assert not seen.shows(later)
    assert seen.shows(later)


def test_a_wait_is_told_and_ends_by_itself_or_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_TOLD_AFTER", 0.0)
    wakeup = Wakeup()
    wait = VisibilityWait(wakeup, hint="the cure")
    answers = iter([True, *[False] * 5, True])
    with capture_logs() as logs:
        assert wait.until(lambda: next(answers), "0/1", seconds=60)
        assert (wait.current, logs) == (None, [])
        assert not wait.until(lambda: next(answers), "0/2", seconds=0)
        first = wait.current
        assert first is not None
        assert first.position == "0/2"
        assert wait.until(lambda: next(answers), "0/2", seconds=60)
        assert wait.current is None
        wakeup.set()
        assert not wait.until(lambda: False, "0/3", seconds=3600)
    assert [(line["event"], line["position"], line.get("hint")) for line in logs] == [
        ("commit_not_visible", "0/2", "the cure"),
        ("commit_visible", "0/2", None),
        ("commit_not_visible", "0/3", "the cure"),
    ]


class _Answers:
    """A session of MariaDB or MySQL: answers each query with the next rows that it has for it."""

    def __init__(self, **answers: list[list[tuple[Any, ...]]]) -> None:
        self._answers = answers
        self.asked: list[str] = []

    def fetch(self, query: str, _: object = None) -> list[tuple[Any, ...]]:
        (kind,) = (kind for kind in self._answers if kind in query.lower())
        self.asked.append(kind)
        return self._answers[kind].pop(0)


def _place(file: int, offset: int) -> list[tuple[str, str]]:
    return [("BINLOG_SNAPSHOT_FILE", f"binlog.{file:06}"), ("BINLOG_SNAPSHOT_POSITION", str(offset))]


def _changes(*places: tuple[int, int], gtid: str = "") -> list[Any]:
    return [
        SimpleNamespace(
            commit=Transaction(
                gtid=gtid and f"{gtid}:{offset}",
                file=f"binlog.{file:06}",
                offset=offset,
                committed=0,
                server="1",
            )
        )
        for file, offset in places
    ]


def _of(
    session: _Answers, *, mariadb: bool, names: Iterator[frozenset[str]] | None = None
) -> BinlogVisibility:
    server = Server(variables={"version": "10.11.6-MariaDB" if mariadb else "9.1.0"})
    given: Any = session
    return visibility_of(given, server, lambda: next(names) if names else frozenset())


def test_mariadb_shows_what_begins_before_its_place() -> None:
    session = _Answers(snapshot=[_place(1, 900), _place(1, 1200), _place(2, 339), _place(1, 400)])
    seen = _of(session, mariadb=True)
    assert seen.shows(_changes((1, 300), (1, 899)))
    assert seen.shows(_changes((1, 500)))
    assert len(session.asked) == 1
    assert seen.shows(_changes((1, 900)))
    assert not seen.shows(_changes((2, 339)))
    with pytest.raises(SourceLostError):
        seen.shows(_changes((2, 400)))


def test_mariadb_shows_an_xa_transaction_when_it_is_not_prepared_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [(7, 1, 1, b"ab")]
    name = prepared_names(rows).pop()
    assert name == "X'61',X'62',7"
    session = _Answers(snapshot=[_place(1, 900)], recover=[rows, [], rows, rows])
    both = frozenset({name, "X'63',X'',1"})
    seen = _of(session, mariadb=True, names=iter([frozenset({name})] * 3 + [both] * 2))
    assert [seen.shows(_changes((1, 300))) for _ in range(3)] == [False, True, True]
    assert session.asked == ["snapshot", "recover", "recover"]
    # A transaction of the same name was prepared since: the wait ends.
    assert not seen.shows(_changes((1, 400)))
    monkeypatch.setattr(mysql_visibility, "monotonic", lambda: float("inf"))
    assert seen.shows(_changes((1, 400)))


def test_mysql_shows_what_is_executed_and_asks_nothing_without_gtids() -> None:
    session = _Answers(gtid_subset=[[(0, 1)], [(1, 1)], [(0, 0)]])
    seen = _of(session, mariadb=False)
    gtid = "8fd08cf9-ea18-11f1-9096-02fc00000001"
    assert seen.shows(_changes((1, 5)))
    assert not session.asked
    assert [seen.shows(_changes((1, 5), (1, 6), gtid=gtid)) for _ in range(3)] == [False, True, True]
    assert len(session.asked) == 2
    with pytest.raises(SourceLostError):
        seen.shows(_changes((1, 7), gtid=gtid))
