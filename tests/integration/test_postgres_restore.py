"""A database that goes back to an earlier state: nothing of what it commits then is taken for published."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from harness.embedded_servers import PostgresServer
from harness.machine_servers import DebianPostgresServer
from harness.waiting import wait_until
from listener.core.source import GapError, Saved
from listener.core.source_status import Reader
from listener.postgres.log.position import WALCheckpoint
from listener.postgres.status import read_postgres_status
from listener.router import BinlogRouter, EventType
from tests.support.postgres.findings import Findings
from tests.support.postgres.history import History, is_later

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def history() -> Iterator[History]:
    with History(PostgresServer, "pgoutput") as history:
        yield history


@pytest.fixture(
    params=[(PostgresServer, "pgoutput"), (DebianPostgresServer, "wal2json")], ids=lambda it: it[1]
)
def each_history(request: pytest.FixtureRequest) -> Iterator[History]:
    with History(*request.param) as history:
        yield history


@pytest.fixture
def archived_history() -> Iterator[History]:
    with History(PostgresServer, "pgoutput", {"archive_mode": "on"}) as history:
        history.archive()
        yield history


def refusal(history: History, **options: Any) -> GapError:
    """Return with what a listener ends, and see that it has left all as it was."""
    published, checkpoint, confirmed = history.ids(), history.checkpoint, history.confirmed
    error = history.listen(lambda: False, **options)
    assert isinstance(error, GapError), error
    assert (history.ids(), history.checkpoint, history.confirmed) == (published, checkpoint, confirmed)
    return error


def test_a_restored_copy_is_refused_for_ever_and_nothing_of_it_is_lost(each_history: History) -> None:
    history = each_history
    history.publish(1, 10)
    history.copy()
    old = history.publish(11, 60)
    history.restore()
    assert "after the end" in refusal(history).message
    history.insert(1001, 1100)
    history.write_past(history.checkpoint.partition(":")[0])
    history.insert(1101, 1200)
    for _ in range(2):
        gap = refusal(history)
        assert "was restored from an earlier state" in gap.message
        assert "--accept-gap" in (gap.hint or "")
    with capture_logs() as logs:
        new = history.published(1001, 1200, accept_gap=True)
    assert [line["gap"] for line in logs if line["event"] == "gap_accepted"] == [gap.message]
    assert not {change.id for change in new} & {change.id for change in old}
    assert all(is_later(change, old) for change in new)
    history.publish(1201, 1210)


@pytest.mark.parametrize("options", [{}, {"replay_window": 600.0}, {"batch_size": 3}])
def test_a_copy_into_which_the_application_wrote_first_is_refused_too(
    history: History, options: dict[str, Any]
) -> None:
    history.insert(1, 10)
    history.listen(lambda: len(history.ids()) == 10, **options)
    history.copy()
    history.insert(11, 60)
    history.listen(lambda: len(history.ids()) == 60, **options)
    history.restore()
    history.insert(1001, 1100)
    history.write_past(history.checkpoint.partition(":")[0])
    history.insert(1101, 1200)
    assert "was restored" in refusal(history, **options).message
    history.listen(lambda: {*range(1001, 1201)} <= {*history.ids()}, accept_gap=True, **options)
    assert [number for number in history.ids() if number > 1000] == [*range(1001, 1201)]


def test_where_all_that_was_published_is_in_the_copy_it_goes_on_and_nothing_is_lost(history: History) -> None:
    old = history.publish(1, 10)
    history.copy()
    end = history.execute("SELECT pg_current_wal_lsn()")[0][0]

    def is_far_beyond() -> bool:
        history.execute("INSERT INTO other SELECT generate_series(1, 200)")
        return history.execute("SELECT %s::pg_lsn > %s::pg_lsn + 100000", place_of(history), end) == [(True,)]

    assert history.listen(is_far_beyond) is None  # the checkpoint is now where the copy never was
    history.restore()
    history.insert(1001, 1010)
    history.write_past(place_of(history))
    history.insert(1011, 1020)
    new = history.published(1001, 1020)
    assert all(is_later(change, old) for change in new)
    assert len({change.id for change in (*old, *new)}) == 30


def test_a_listener_that_was_killed_goes_on_in_the_log_that_it_knows(each_history: History) -> None:
    """The slot stands before what was published: nothing was acknowledged."""
    history = each_history
    history.insert(1, 30)
    history.listen(lambda: len(history.ids()) == 30, replay_window=600.0)
    history.insert(31, 40)
    history.server.restart()
    history.published(1, 40)


def test_the_first_start_published_nothing_and_a_restored_copy_loses_nothing(history: History) -> None:
    history.copy()
    history.write_past(place_of(history))
    before = history.checkpoint
    history.listen(lambda: history.checkpoint != before)
    history.restore()
    history.publish(1, 20)


def test_a_checkpoint_of_an_earlier_version_is_taken_for_what_it_says(history: History) -> None:
    history.publish(1, 10)
    history.keep_checkpoint(WALCheckpoint.parse(history.checkpoint).label)
    history.publish(11, 20)
    assert WALCheckpoint.parse(history.checkpoint).last.committed


def place_of(history: History) -> str:
    return history.checkpoint.partition(":")[0] or "0/0"


@pytest.mark.parametrize("by_hand", ["made again", "advanced"])
def test_a_slot_that_somebody_moved_is_a_gap_that_names_its_ends(history: History, by_hand: str) -> None:
    history.publish(1, 10)
    place = place_of(history)
    history.insert(101, 150)
    if by_hand == "advanced":
        history.execute("SELECT pg_replication_slot_advance('cdc', pg_current_wal_lsn())")
    else:
        wait_until(lambda: history.execute("SELECT active FROM pg_replication_slots") == [(False,)])
        history.execute("SELECT pg_drop_replication_slot('cdc')")
        history.execute("SELECT pg_create_logical_replication_slot('cdc', 'pgoutput')")
    history.insert(151, 160)
    found = Findings(history.server.url, history.router, name="cdc", saved=Saved(history.checkpoint))
    status = read_postgres_status(history.server.url, "cdc", history.checkpoint)
    for _ in range(2):
        gap = refusal(history)
        assert (found.problems, found["checkpoint"].found) == (["checkpoint"], gap.message)
        assert status.problems == (gap.message,)
        assert f"is at {history.confirmed}, but the checkpoint at {place}:0" in gap.message
        assert "advanced it" in gap.message
        assert "broker" in gap.message
    history.published(151, 160, accept_gap=True)
    assert history.ids() == [*range(1, 11), *range(151, 161)]
    history.publish(161, 170)


def test_after_a_recovery_to_a_point_in_time_what_comes_is_new_and_later(archived_history: History) -> None:
    history = archived_history
    history.publish(1, 10)
    history.copy()
    history.publish(11, 30)
    history.execute("SELECT pg_create_restore_point('here')")
    lost = history.publish(31, 60)
    history.restore_to("here", with_slot=True)  # the copy of a disk has it
    history.insert(1001, 1100)
    with capture_logs() as logs:
        new = history.published(1001, 1100)
    assert history.ids() == [*range(1, 61), *range(1001, 1101)]
    assert "failover_lost_changes" in [line["event"] for line in logs]
    assert not {change.id for change in new} & {change.id for change in lost}
    assert all(is_later(change, lost) for change in new)
    assert new[0].position.startswith("2@")
    history.publish(1101, 1110)


def test_a_slot_that_a_recovery_did_not_bring_back_is_a_gap_that_names_its_ends(
    archived_history: History,
) -> None:
    history = archived_history
    history.publish(1, 10)
    history.copy()
    history.execute("SELECT pg_create_restore_point('here')")
    lost = history.publish(11, 60)
    place = place_of(history)
    history.restore_to("here", with_slot=False)
    history.insert(1001, 1100)
    found = Findings(history.server.url, history.router, name="cdc", saved=Saved(history.checkpoint))
    assert found.problems == ["slot cdc"]
    status = read_postgres_status(history.server.url, "cdc", history.checkpoint)
    assert (status.reader, status.detail) == (Reader.LOST, "there is no replication slot cdc any more")
    for _ in range(2):
        gap = history.listen(lambda: False)
        assert isinstance(gap, GapError)
        assert f"committed after {place}:0 and before it is recreated (now: 0/" in gap.message
        assert gap.message.partition("now")[0] in found["slot cdc"].found
    with capture_logs() as logs:
        history.listen(lambda: history.checkpoint.startswith("1.2@"), accept_gap=True)
    assert [line["gap"] for line in logs if line["event"] == "gap_accepted"] == [gap.message]
    new = history.publish(1101, 1110)
    assert all(is_later(change, lost) for change in new)
    assert new[0].position.startswith("1.2@")


def test_the_last_published_change_comes_again_although_no_route_selects_its_table(
    each_history: History,
) -> None:
    """The publication is changed at the start; the log is read with the one that there was."""
    history = each_history
    history.insert(1, 10)
    history.listen(lambda: len(history.ids()) == 10, replay_window=600.0)
    history.router = BinlogRouter()
    history.router.register("public", "other", EventType.INSERT, "tests.task")
    history.listen(lambda: history.checkpoint.startswith("0/"))
    history.insert(11, 20)
    before = history.checkpoint
    assert history.listen(lambda: history.checkpoint != before) is None
    history.execute("INSERT INTO other VALUES (1001)")
    assert history.listen(lambda: 1001 in history.ids()) is None
    assert history.ids() == [*range(1, 11), 1001]
