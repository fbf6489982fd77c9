"""mysql-replication as it is, whose rows are only iterated over: it prints now and then how many there were.

    python -m benchmarks.stock_reader PORT GTIDS mariadb|mysql

Its documentation knows of these ways to be faster, and all are taken: only the events and the table that matter,
nothing logged, checksums not verified. `only_events` leaves the transactions' own events out.
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
    count = said = 0
    for event in reader:
        for _ in event.rows:
            count += 1
        if count >= said + _EVERY:
            said = count
            sys.stdout.write(f"{count}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
