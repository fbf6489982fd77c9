"""When a bookmark moves, without a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from listener.core.source import Batch
from listener.daemon.bookmarked_monitor import BookmarkedMonitor

if TYPE_CHECKING:
    from collections.abc import Iterator

_NOTED = "binlog.000007:900:-1 server=1 born=1000 gtids=0-1-9"


class _Monitor:
    source = "mariadb"

    def __init__(self, position: str, *, has_accepted_gap: bool) -> None:
        self._position = position
        self.has_accepted_gap = has_accepted_gap

    def batches(self, after: str | None) -> Iterator[Batch]:
        assert after is not None
        yield Batch([], self._position)


class _Bookmark:
    key = "the bookmark"

    def __init__(self) -> None:
        self.started_at: list[str] = []

    def read(self, _source: str, *, wait: bool) -> str:
        assert not wait
        return _NOTED

    def start_at(self, position: str) -> None:
        self.started_at.append(position)


@pytest.mark.parametrize(
    ("position", "has_accepted_gap", "moves"),
    [
        (_NOTED, False, False),
        ("binlog.000008:4:-1 server=1 born=1500 gtids=0-1-9", False, False),
        ("binlog.000008:4:-1 server=1 born=1500 gtids=0-1-9 epoch=1", True, True),
        ("binlog.000001:4:-1 server=1 born=2000 gtids= epoch=1", True, True),
        ("binlog.000006:4:-1 server=1 born=900 gtids=0-1-2", False, True),
        ("binlog.000001:4:-1 server=2 gtids=0-1-9", False, False),
    ],
)
def test_a_bookmark_begins_again_behind_an_accepted_gap(
    position: str, has_accepted_gap: bool, moves: bool
) -> None:
    monitor, bookmark = _Monitor(position, has_accepted_gap=has_accepted_gap), _Bookmark()
    bookmarked = BookmarkedMonitor(cast("Any", monitor), cast("Any", bookmark))
    assert [batch.position for batch in bookmarked.batches(_NOTED)] == [position]
    assert bookmark.started_at == ([position] if moves else [])
