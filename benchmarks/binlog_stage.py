"""MySQL and MariaDB for the benchmarks."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import pymysql

from benchmarks.stage import DESCRIPTION, TITLE, Stage
from harness.given_mysql import MariaDBServer, MySQLServer

__all__ = ["BinlogPlace", "BinlogStage"]

# These favour no contender: the server has enough memory.
_OPTIONS = ("--innodb-buffer-pool-size=512M", "--innodb-flush-log-at-trx-commit=0")

_SCHEMA = (
    "CREATE DATABASE public",  # for the same routes as on PostgreSQL
    """CREATE TABLE public.tickets (
      id BIGINT AUTO_INCREMENT PRIMARY KEY, title VARCHAR(200), assigned_to_id BIGINT, created_by BIGINT,
      status VARCHAR(20), priority VARCHAR(20), created_at TIMESTAMP(6) NULL, flag BOOLEAN, description TEXT
    ) DEFAULT CHARSET utf8mb4""",
    "CREATE TABLE public.numbers (n INT PRIMARY KEY)",
    f"""CREATE PROCEDURE public.fill_tickets(transactions INT, size INT)
    BEGIN
      WHILE transactions > 0 DO
        INSERT INTO tickets (title, assigned_to_id, created_by, status, priority, created_at, flag, description)
          SELECT '{TITLE}', 5, 17, 'open', 'high', NOW(6), TRUE, '{DESCRIPTION}' FROM numbers WHERE n <= size;
        SET transactions = transactions - 1;
      END WHILE;
    END""",  # noqa: S608 - our own text
)


@dataclass(frozen=True)
class BinlogPlace:
    """A place in the log: its end at a certain time."""

    file: str
    offset: int
    gtids: str


class BinlogStage(Stage):
    """Debian's MariaDB 10.11, or MySQL 9 with GTIDs, with one table; `mark` is the place before the last `fill`."""

    routes = "every_ticket"

    def __init__(self, server: MariaDBServer | MySQLServer) -> None:
        super().__init__()
        self.server = server
        server.arguments.extend(_OPTIONS)
        self.mark = BinlogPlace("", 4, "")

    @property
    def url(self) -> str:
        return self.server.url_of("public")

    @property
    def version(self) -> str:
        return str(self.fetch("SELECT VERSION()")[0][0])

    @property
    def is_mariadb(self) -> bool:
        return isinstance(self.server, MariaDBServer)

    def fetch(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run the statements in one session, and return the rows of the last one."""
        session = pymysql.connect(host="127.0.0.1", port=self.server.port, user="root", autocommit=True)
        with closing(session), session.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall())

    def fill(self, table: str, rows: int, *, transaction: int) -> None:
        self._count_to(transaction)
        self.mark = self._end_of_log()
        self.fetch("USE public", f"CALL fill_{table}({rows // transaction}, {transaction})")

    def _open(self, stack: ExitStack) -> None:
        stack.enter_context(self.server)
        self.fetch(*_SCHEMA, "SET sql_log_bin = 0", "INSERT INTO public.numbers VALUES (1)")

    def _count_to(self, wanted: int) -> None:
        """Fill the table of numbers with at least `wanted` rows, without logging it."""
        ((count,),) = self.fetch("SELECT COUNT(*) FROM public.numbers")
        doubling = (
            "INSERT INTO public.numbers SELECT n + (SELECT MAX(n) FROM public.numbers) FROM public.numbers"
        )
        while count < wanted:
            self.fetch("SET sql_log_bin = 0", doubling)
            count *= 2

    def _end_of_log(self) -> BinlogPlace:
        status = "SHOW MASTER STATUS" if self.is_mariadb else "SHOW BINARY LOG STATUS"
        gtids = "SELECT @@gtid_binlog_pos" if self.is_mariadb else "SELECT @@gtid_executed"
        ((file, offset, *_),) = self.fetch(status)
        return BinlogPlace(file, int(offset), str(self.fetch(gtids)[0][0]).replace("\n", ""))
