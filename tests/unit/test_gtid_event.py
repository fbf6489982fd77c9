"""The events that begin a transaction, as MySQL 9.7 and MariaDB 10.11 sent them."""

from __future__ import annotations

from listener.mysql.codec.gtid_event import mariadb_gtid, mysql_gtid, tagged_gtid

_SERVER = "8518ce32-e697-11f1-a0a6-02fc00000001"
_PLAIN = bytes.fromhex(
    "e521036b21010000004f000000790200000000008518ce32e69711f1a0a602fc000000010300000000000000020200000000"
    "00000003000000000000008bf2fb8be06006fc2a01506201000c8a3954"
)
_TAGGED = bytes.fromhex(
    "e521036b2a0100000051000000a5030000000002740000000215023039036499035d0222c5038102990204f1030000000204"
    "040608626c756508080a100c7f761bfc8be0600610b1041283120bb6ef3497"
)
_MARIADB = bytes.fromhex(
    "ee13036ba2010000002a0000008a06000008000500000000000000000000000c000000000000fc4f4975"
)
_COMMITTED = 1795367397


def test_a_gtid_is_read_with_its_time_in_microseconds() -> None:
    gtid, committed = mysql_gtid(_PLAIN)
    assert (gtid, committed // 1_000_000) == (f"{_SERVER}:3", _COMMITTED)


def test_without_gtids_there_is_still_the_time() -> None:
    anonymous = _PLAIN[:4] + b"\x22" + _PLAIN[5:]
    assert mysql_gtid(anonymous) == ("", mysql_gtid(_PLAIN)[1])


def test_a_gtid_with_a_tag_is_read() -> None:
    gtid, committed = tagged_gtid(_TAGGED)
    assert (gtid, committed // 1_000_000) == (f"{_SERVER}:blue:1", _COMMITTED)
    assert committed > mysql_gtid(_PLAIN)[1]


def test_a_gtid_of_mariadb_is_read_with_its_flags() -> None:
    assert mariadb_gtid(_MARIADB) == ("0-1-5", 1795363822 * 1_000_000, 0x0C)
