"""Changes of one row whose tasks run out of order leave the newest state."""

from __future__ import annotations

import random
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from cdc_tasks.changes import EventType, RowChange
from cdc_tasks.latest import latest_only, store_latest
from cdc_tasks.retry import NotYetError
from harness.waiting import wait_until
from harness.worker import Worker
from tests.support.helpdesk import change

if TYPE_CHECKING:
    from tests.support.helpdesk import HelpDesk

_NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def _change(number: int, position: str | None = None, *, source: str = "here", **values: Any) -> RowChange:
    return RowChange(
        id=f"{source}-{number:X}-0",
        schema="public",
        table="tickets",
        event=EventType.UPDATE,
        before=None,
        after={"id": 1, "n": number},
        position=position or f"0/{number:X}:0",
        committed_at=values.get("committed_at", _NOON + timedelta(seconds=number)),
    )


def test_a_hundred_changes_that_run_out_of_order_on_two_workers_leave_the_newest(helpdesk: HelpDesk) -> None:
    environment = {**helpdesk.environment, "CDC_TASK_MODULES": "tests.support.tasks.latest"}
    changes = [change(EventType.UPDATE, "tickets", after={"id": 1, "n": n}) for n in range(100)]
    with Worker(environment, "-n", "one@%h"), Worker(environment, "-n", "two@%h"):
        for each in random.sample(changes, len(changes)):
            helpdesk.send("latest.stored", each, queue="celery")
            helpdesk.send("latest.held", each, queue="celery")
        cache = helpdesk.broker.cache
        wait_until(
            lambda: cache.llen("runs") >= 100 and cache.get("seen") == b"100", timeout=40, what="all to run"
        )
    assert cache.get("stored") == b"99"
    effects = [int(each) for each in cache.lrange("effects", 0, -1)]
    assert effects[-1] == 99
    assert effects == sorted(effects)


def test_two_that_write_at_the_same_time_never_leave_the_older(in_process: HelpDesk) -> None:
    for round_ in range(20):
        changes = [_change(round_ * 10 + n) for n in range(8)]
        threads = [
            threading.Thread(target=store_latest, args=("value", each.row["n"], each))
            for each in random.sample(changes, len(changes))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert in_process.broker.cache.get("value") == str(round_ * 10 + 7).encode()


def test_a_deleted_value_does_not_come_back_with_an_older_change(in_process: HelpDesk) -> None:
    assert store_latest("value", "1", _change(1))
    assert store_latest("value", None, _change(3))
    assert not store_latest("value", "2", _change(2))
    assert in_process.broker.cache.get("value") is None


def test_a_change_whose_block_failed_is_not_done(in_process: HelpDesk) -> None:
    with pytest.raises(OSError, match="search is away"), latest_only("row", _change(2)):
        raise OSError("search is away")
    with latest_only("row", _change(1)) as is_latest:
        assert is_latest  # the older change may be done first: the newer one comes later
    with latest_only("row", _change(2)) as is_latest:
        assert is_latest
    with latest_only("row", _change(2)) as is_latest:
        assert not is_latest  # a replay
    with latest_only("another row", _change(1)) as is_latest:
        assert is_latest


def test_while_one_worker_has_the_key_another_waits(in_process: HelpDesk) -> None:
    with latest_only("row", _change(1)) as is_latest:
        assert is_latest
        with pytest.raises(NotYetError), latest_only("row", _change(2)):
            pass


def test_after_a_failover_the_time_of_the_commit_decides(in_process: HelpDesk) -> None:
    old, new = "11111111-71CA-11E1-9E33-C80AA9429562", "22222222-71CA-11E1-9E33-C80AA9429562"
    assert store_latest("value", "old", _change(900, f"{old}:900:0"))
    assert store_latest("value", "new", _change(901, f"{new}:1:0"))
    assert not store_latest("value", "late", _change(899, f"{old}:899:0"))
    assert in_process.broker.cache.get("value") == b"new"
    assert store_latest("restored", "old", _change(900))
    assert store_latest(
        "restored", "new", _change(5, source="elsewhere", committed_at=_NOON + timedelta(days=1))
    )


def test_after_a_restore_the_newer_history_wins_at_any_place_in_its_log(in_process: HelpDesk) -> None:
    """Its places have a higher era. The times of the commits do not count, as its clock may differ."""
    assert store_latest("value", "old", _change(900))
    assert store_latest("value", "restored", _change(20, "1.1@0/20:0"))
    assert not store_latest("value", "late", _change(15))
    assert store_latest("value", "restored, too", _change(10, "1.1@0/30:0"))
    assert in_process.broker.cache.get("value") == b"restored, too"


def test_a_listener_that_lost_its_era_with_its_checkpoint_still_has_the_newer_changes(
    in_process: HelpDesk,
) -> None:
    assert store_latest("value", "restored", _change(20, "1.1@0/20:0"))
    assert store_latest("value", "new", _change(30))
    assert in_process.broker.cache.get("value") == b"new"
