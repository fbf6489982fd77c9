"""The place in a binlog, without a server."""

from __future__ import annotations

import pytest

from listener.mysql.codec.transaction_progress import ALL, Progress
from listener.mysql.log.position import BinlogPosition

_GTID = "9a42f625-e678-11f1-9477-02fc00000001"


def _begin(progress: Progress, gtid: str, *, end: int = 200) -> None:
    progress.begin(gtid, end=end, size=100, committed=1)


@pytest.mark.parametrize(
    ("mariadb", "before", "gtid"), [(True, "0-1-4", "0-1-5"), (False, f"{_GTID}:1-4", f"{_GTID}:5")]
)
def test_the_position_never_goes_back_while_a_published_part_is_read_again(
    mariadb: bool, before: str, gtid: str
) -> None:
    after = BinlogPosition(file="binlog.000001", offset=100, ordinal=10, server="1", gtids=before, gtid=gtid)
    progress = Progress(after, mariadb=mariadb)
    assert progress.position == after
    _begin(progress, gtid)
    assert progress.published_up_to == 10
    for ordinal in (0, 5, 11):
        progress.advance(ordinal)
        assert progress.position == after
    progress.advance(12)
    assert progress.position.ordinal == 11
    progress.finish(300)
    assert progress.position == BinlogPosition(
        file="binlog.000001", offset=300, server="1", gtids=before[:-1] + "5"
    )


def test_without_gtids_the_transaction_is_found_by_its_place() -> None:
    after = BinlogPosition(file="binlog.000001", offset=100, ordinal=3, server="1")
    progress = Progress(after, mariadb=False)
    _begin(progress, f"{_GTID}:7")
    assert progress.published_up_to == 3
    progress.finish(250)
    _begin(progress, f"{_GTID}:8", end=350)
    assert progress.published_up_to == -1


def test_an_end_without_a_place_leaves_the_position_at_the_start_of_the_transaction() -> None:
    """MariaDB writes 0 there since 11.4: it goes on by GTID."""
    progress = Progress(BinlogPosition.parse("binlog.000001:100:-1 server=1 gtids=0-1-4"), mariadb=True)
    _begin(progress, "0-1-5", end=350)
    progress.finish(0)
    assert (progress.position.offset, progress.position.gtids) == (progress.start, "0-1-5")


def test_what_was_published_before_a_prepared_transaction_is_left_out() -> None:
    text = "binlog.000001:500:-1 server=1 gtids=0-1-4 restart=binlog.000001:100 published=0-1-9"
    after = BinlogPosition.parse(text)
    assert str(after) == text
    for server in ("1", "2"):  # by its place, and on another server by its GTIDs
        progress = Progress(after, mariadb=True, server=server)
        for number, end in ((5, 200), (3, 300), (9, 500)):
            _begin(progress, f"0-1-{number}", end=end)
            assert progress.published_up_to == ALL
            progress.finish(end + 50)
            assert progress.position == after
        _begin(progress, "0-1-4", end=600)
        assert progress.published_up_to == -1


@pytest.mark.parametrize(
    "text",
    [
        "binlog.000003:1234:-1 server=1 gtids=",
        "binlog.000003:1234:5 server=1",
        "binlog.000003:1234:5 server=1 born=1795365648",
        f"mysql-bin.000003:1234:5 server={_GTID} gtids={_GTID}:1-4 in={_GTID}:5",
    ],
)
def test_a_position_is_read_as_it_was_written(text: str) -> None:
    assert str(BinlogPosition.parse(text)) == text
