"""Positions of all sources compare as their changes were committed."""

from __future__ import annotations

import random

import pytest

from cdc_tasks.changes import position_key

_SERVER = "3E11FA47-71CA-11E1-9E33-C80AA9429562"


@pytest.mark.parametrize(
    "in_order",
    [
        [
            "0/16B3748:0",
            "0/16B3748:2",
            "0/16B3748:10",
            "0/16B3800:0",
            "0/FFFFFFFF:0",
            "1/0:0",
            "A/0:0",
            "10/0:0",
            "2@0/16B3748:0",  # after a failover
            "2@0/16B3748:1",
            "2@10/0:0",
            "11@0/16B3748:0",
            "1.1@0/8:0",  # after a restore
            "1.2@0/10:0",
            "1.11@0/9:0",
            "2.1@0/9:0",
            "10.1@0/8:0",
        ],
        [
            "binlog.000003:4:0",
            "binlog.000003:1234:0",
            "binlog.000003:1234:11",
            "binlog.000010:4:0",
            "binlog.1000000:4:0",
        ],
        ["mysql-bin.000009:99999:0", "mysql-bin.000010:4:0"],
        [f"{_SERVER}:9:0", f"{_SERVER}:10:0", f"{_SERVER}:10:3"],
        [f"{_SERVER}:tag:9:0", f"{_SERVER}:tag:10:0"],
        ["0-1-9:0", "0-2-10:0", "0-1-11:0"],
        ["0-1-22:0", "0-2-3@1:0", "0-2-4@1:0", "0-1-23@1:7", "0-1-1@2:0", "0-1-1@10:0", "0-1-1@16:0"],
        [f"{_SERVER}:100:0", f"{_SERVER}:1@1:0", f"{_SERVER}:2@1:0"],
        ["binlog.000009:4:0", "binlog.000001:4@1:0", "binlog.000002:4@1:3"],
    ],
)
def test_positions_of_one_log_sort_as_they_were_committed(in_order: list[str]) -> None:
    shuffled = random.sample(in_order, len(in_order))
    assert sorted(shuffled, key=position_key) == in_order
    assert len({position_key(each)[0] for each in in_order}) == 1


def test_positions_of_different_logs_are_told_apart() -> None:
    logs = {
        position_key(each)[0]
        for each in ("0/1:0", f"{_SERVER}:1:0", "0-1-1:0", "7-1-1:0", "binlog.000001:4:0")
    }
    assert len(logs) == 5


def test_places_of_the_first_era_are_what_they_were_before_there_were_eras() -> None:
    """Records of `latest_only` and the lanes hold them for days."""
    assert position_key("0/16B3748:3") == ("", f"{0x16B3748:032x}.00000003")


@pytest.mark.parametrize("wrong", ["", "0/1", "nonsense:0", "0/XYZ:0", "x@0/1:0", "1.x@0/1:0"])
def test_what_is_no_position_is_an_error(wrong: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # whatever it says
        position_key(wrong)
