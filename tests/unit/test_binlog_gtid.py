"""Sets of GTIDs as values."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.mysql.log.gtid import MariaDBGTIDs, MariaDBState, MySQLGTIDs

_A = "9a42f625-e678-11f1-9477-02fc00000001"
_B = "00000000-e678-11f1-9477-02fc00000001"


@pytest.mark.parametrize(
    ("given_text", "text"),
    [
        ("", ""),
        (f"{_A}:1-5:7", f"{_A}:1-5:7"),
        (f"{_A}:7:1-3:4-5,\n{_B}:1", f"{_B}:1,{_A}:1-5:7"),
        (f"{_A.upper()}:1:tag:1-2", f"{_A}:1,{_A}:tag:1-2"),
    ],
)
def test_a_set_is_printed_as_the_server_has_it(given_text: str, text: str) -> None:
    assert str(MySQLGTIDs(given_text)) == text


@given(st.lists(st.integers(1, 40)), st.lists(st.integers(1, 40)))
def test_sets_are_sets(first: list[int], second: list[int]) -> None:
    one, other = MySQLGTIDs(), MySQLGTIDs()
    for number in first:
        one.add(f"{_A}:{number}")
    for number in second:
        other.add(f"{_A}:{number}")
    assert one.size() == len(set(first))
    assert one.union(other).size() == len({*first, *second})
    left = one.minus(other)
    assert [number for number in range(1, 41) if f"{_A}:{number}" in left] == sorted(set(first) - set(second))
    assert MySQLGTIDs(str(one)) == one


@pytest.mark.parametrize("text", ["", f"{_A}:1-5:7,{_B}:3", f"{_A}:1-5:7,{_A}:blue:2-3,{_B}:{'t' * 32}:1"])
def test_a_set_is_read_as_it_was_encoded(text: str) -> None:
    assert MySQLGTIDs.decoded(MySQLGTIDs(text).encoded()) == MySQLGTIDs(text)


@pytest.mark.parametrize("text", ["x", f"{_A}", f"{_A}:5-3", f"{_A}:0", f"{_A}:1-x"])
def test_what_is_no_set_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # whatever it says
        MySQLGTIDs(text)


def test_a_domain_of_mariadb_is_at_its_last_transaction_whatever_its_number() -> None:
    gtids = MariaDBGTIDs("1-2-4,0-1-17")
    gtids.add("0-3-5")
    assert str(gtids) == "0-3-5,1-2-4"
    assert ("0-3-5" in gtids, "0-1-5" in gtids, "0-1-4" in gtids, "7-1-1" in gtids) == (
        True,
        False,
        False,
        False,
    )
    assert [gtids.ascends_to(each) for each in ("0-1-6", "0-1-5", "1-2-4", "7-1-1")] == [
        True,
        False,
        False,
        True,
    ]
    assert gtids.minus(MariaDBGTIDs("0-1-17,1-2-4")) == MariaDBGTIDs("0-3-5")


def test_a_log_of_mariadb_knows_the_greatest_number_of_each_server() -> None:
    state = MariaDBState("0-1-23,0-2-4,1-1-7")
    assert str(state.lacks(MariaDBGTIDs("0-2-4,1-2-1"))) == "1-2-1"
    assert str(state.lacks(MariaDBGTIDs("0-2-5,1-1-7"))) == "0-2-5"
    event = (
        bytes(19) + (2 | 1 << 28).to_bytes(4, "little") + struct.pack("<IIQIIQ", 0, 1, 23, 0, 2, 4) + bytes(4)
    )
    assert [MariaDBState.decoded(event).number(each) for each in ("0-1-1", "0-2-9", "0-3-1")] == [23, 4, 0]
