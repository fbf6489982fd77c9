"""A server that was restored from a copy: what it commits since then is neither skipped nor taken for older."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cdc_tasks.changes import position_key
from harness.given_mysql import KINDS, server_of_kind
from listener.core.findings import State
from listener.core.source import GapError
from listener.mysql.check import check_mysql
from listener.mysql.log.position import BinlogPosition
from tests.support.mysql.source import NumberSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cdc_tasks.changes import Change
    from harness.given_mysql import MariaDBServer, MySQLServer


@pytest.fixture(params=KINDS, scope="module")
def own_server(request: pytest.FixtureRequest) -> Iterator[MariaDBServer | MySQLServer]:
    with server_of_kind(request.param) as server:
        yield server


@pytest.fixture
def own(own_server: MariaDBServer | MySQLServer) -> Iterator[NumberSource]:
    with NumberSource.on(own_server) as source:
        yield source


def take_copy(server: MariaDBServer | MySQLServer) -> None:
    """Copy the data while the server is stopped."""
    server.stop()
    shutil.copytree(server.data_dir, server.home / "copy")
    server.start()


def restore(server: MariaDBServer | MySQLServer) -> None:
    """Let the server go on with the copy, as its administrator would."""
    server.kill()
    shutil.rmtree(server.data_dir)
    shutil.copytree(server.home / "copy", server.data_dir)
    server.start()


def refuses(source: NumberSource) -> None:
    """Check that it stops, as often as a supervisor tries, and that `check` says so too."""
    for _ in range(2):
        with pytest.raises(GapError, match="restored"):
            source.watch()
        source.stop()
    found = check_mysql(
        source.database.url, name=source.name, server_id=4711, routes=(), checkpoint=source.position
    )
    (checkpoint,) = (each for each in found if each.what == "checkpoint")
    assert checkpoint.state is State.PROBLEM


def test_a_restore_is_a_gap_whatever_is_written_before_the_listener_starts(
    own: NumberSource, own_server: MariaDBServer | MySQLServer
) -> None:
    own.insert(1)
    take_copy(own_server)
    own.watch()
    own.insert(*range(2, 7))
    old = own.changes(5)
    own.stop()
    restore(own_server)
    refuses(own)
    own.insert(*range(102, 105))
    refuses(own)
    own.insert(*range(105, 120))  # past the checkpoint
    own.execute("FLUSH BINARY LOGS", "FLUSH BINARY LOGS")
    refuses(own)
    before = own.position
    own.watch(accept_gap=True)
    found = own.changes(19)
    new = [each for each in found if each.row["id"] > 100]
    assert [each.row["id"] for each in new] == list(range(102, 120))
    assert not {each.id for each in old} & {each.id for each in new}
    assert not {each.position for each in old} & {each.position for each in found}
    assert all(is_newer(each, than=old[-1]) for each in new)
    own.stop()
    own.insert(200)
    own.watch()
    (last,) = own.changes(1)
    assert is_newer(last, than=new[-1])
    own.stop()
    # Where the log has been purged, too.
    own.database.purge_logs()
    own.insert(201)
    own.position = before
    for _ in range(2):
        with pytest.raises(GapError, match=r"restored|purged"):
            own.watch()
        own.stop()
    own.watch(accept_gap=True)
    assert own.numbers(1) == [201]


def is_newer(change: Change, *, than: Change) -> bool:
    """Return whether `latest_only` would take it for the newer one."""
    (log, place), (other_log, other) = position_key(change.position), position_key(than.position)
    return place > other if log == other_log else change.committed_at > than.committed_at


def test_the_last_transaction_tells_what_the_birth_of_its_file_does_not(own: NumberSource) -> None:
    own.watch()
    own.insert(1)
    assert own.numbers(1) == [1]
    own.stop()
    position = BinlogPosition.parse(own.position or "")
    place, _, mark = position.last.rpartition(":")
    other = "00000000" if mark != "00000000" else "00000001"
    file, _, offset = place.rpartition(":")
    own.insert(2)
    for last in (f"{place}:{other}", f"{file}:{int(offset) + 1}:{mark}", f"{file}:4:{mark}"):
        own.position = str(replace(position, last=last))
        refuses(own)
    own.position = str(position)
    own.watch()
    assert own.numbers(1) == [2]


def test_the_last_transaction_is_found_again_in_a_log_without_checksums(own: NumberSource) -> None:
    for checksum in ("NONE", "CRC32"):
        own.execute("DELETE FROM t", f"SET GLOBAL binlog_checksum = {checksum}")
        own.position = None
        own.watch()
        own.insert(1)
        assert own.numbers(1) == [1]
        own.stop()
        assert BinlogPosition.parse(own.position or "").last
        own.insert(2)
        own.watch()
        assert own.numbers(1) == [2]
        own.stop()


def test_a_purge_of_what_was_published_is_a_gap_only_where_nothing_tells_that_it_was(
    own: NumberSource,
) -> None:
    own.watch()
    own.insert(1)
    assert own.numbers(1) == [1]
    own.rest()
    own.stop()
    own.database.purge_logs()
    own.insert(2)
    has_gtids = BinlogPosition.parse(own.position or "").gtids is not None
    if not has_gtids:
        with pytest.raises(GapError, match="purged"):
            own.watch()
        own.stop()
    own.watch(accept_gap=not has_gtids)
    (change,) = own.changes(1)
    assert change.row["id"] == 2
    assert ("@" in change.position) is not has_gtids
