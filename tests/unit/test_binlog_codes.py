"""Codes of errors of MySQL and MariaDB that are not those of a class: once given, they stay."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOM = Path(__file__).parents[2] / "listener" / "mysql"

# A code may be added. To remove or change one breaks the programs that look for it.
_CODES = """
authentication backfill_engine backfill_no_key backfill_no_right backfill_no_table backfill_type
backfill_where backfill_without_gtids binlog_other binlog_row_metadata checksum database_missing database_url
host_blocked host_not_allowed
incident lock_lost log_bin log_purged log_reset log_unreadable logged_as_statement max_allowed_packet
mysql_replication offset_too_large other_server replica_behind server_id tls too_many_connections undecodable
unknown_event unknown_packet unknown_statement unreachable
"""


def test_no_code_was_taken_away_or_changed() -> None:
    assert set(_codes()) == set(_CODES.split())


def _codes() -> Iterator[str]:
    """Yield the codes that our sources give to errors, by name, or in a rule for the server's errors."""
    for path in _ROOM.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            given = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            if called == "_Rule":
                given.append(node.args[1])
            if called != "Finding":
                yield from (
                    str(each.value) for each in given if isinstance(each, ast.Constant) and each.value
                )
