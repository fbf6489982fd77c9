"""The measurements on MySQL and MariaDB."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from benchmarks.binlog_contenders import MARIADB, MYSQL
from benchmarks.binlog_stage import BinlogStage
from benchmarks.memory import peak_by_transaction
from benchmarks.throughput import Drained, Rows, measure
from harness.given_mysql import MariaDBServer, MySQLServer

__all__ = ["DATABASES", "compare", "peak", "version"]

DATABASES: Final = {"mariadb": (MariaDBServer, MARIADB), "mysql": (MySQLServer, MYSQL)}

_TRANSACTIONS: Final = (100, 1)  # rows in each

Say = Callable[[str], None]


def compare(database: str, rows: int, rounds: int, say: Say) -> dict[str, dict[str, Drained]]:
    """Have every contender read the same rows; return the results by the number of rows in a transaction."""
    server, contenders = DATABASES[database]
    return {
        str(size): measure(BinlogStage(server()), contenders, Rows(rows, transaction=size), rounds, say)
        for size in _TRANSACTIONS
    }


def peak(database: str, sizes: Sequence[int], say: Say) -> dict[str, float]:
    """Return the listener's peak memory in MB, by the number of rows in a transaction."""
    server, _ = DATABASES[database]
    return peak_by_transaction(BinlogStage(server()), sizes, say)


def version(database: str) -> str:
    """Return the server's version."""
    server, _ = DATABASES[database]
    with BinlogStage(server()) as stage:
        return stage.version
