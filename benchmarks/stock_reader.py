"""Iterate over the rows of mysql-replication, and print their number from time to time.

    python -m benchmarks.stock_reader PORT GTIDS mariadb|mysql

It follows the library's documentation on speed: only the necessary events and one table, no logging, no verified
checksums. `only_events` leaves out the events of transactions.
"""

from __future__ import annotations

import sys

from pymysqlreplication import BinLogStreamReader
from pymysqlreplication.row_event import DeleteRowsEvent, UpdateRowsEvent, WriteRowsEvent

_EVERY = 200  # rows


def main() -> None:
    port, gtids, kind = sys.argv[1:]
    reader = BinLogStreamReader(
        connection_settings={"host": "127.0.0.1", "port": int(port), "user": "root", "passwd": ""},
        server_id=4711,
        auto_position=gtids,
        is_mariadb=kind == "mariadb",
        blocking=True,
        only_events=[WriteRowsEvent, UpdateRowsEvent, DeleteRowsEvent],
        only_schemas=["public"],
        only_tables=["tickets"],
        freeze_schema=True,
        enable_logging=False,
    )
    count = printed = 0
    for event in reader:
        for _ in event.rows:
            count += 1
        if count >= printed + _EVERY:
            printed = count
            sys.stdout.write(f"{count}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
