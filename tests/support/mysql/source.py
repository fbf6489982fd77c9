"""A MySQL or MariaDB database with a monitor that returns commits as changes."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import pymysql

from harness.waiting import Deadline, wait_until
from listener.core.backfill import ChunkRequest
from listener.core.source import Saved
from listener.mysql.client.connection import Address
from listener.mysql.codec.decoder import Decoder
from listener.mysql.log.position import BinlogPosition
from listener.mysql.monitor import BinlogMonitor
from listener.mysql.start.log_identity import log_created_at
from listener.router import BinlogRouter, EventType

if TYPE_CHECKING:
    from types import TracebackType

    from cdc_tasks.changes import Change
    from harness.given_mysql import GivenMySQLServer, MariaDBServer, MySQLServer

__all__ = ["MySQLDatabase", "MySQLSource", "NumberSource"]


@dataclass(frozen=True, kw_only=True)
class MySQLDatabase:
    """A test's own database, on MySQL or MariaDB."""

    name: str
    server: GivenMySQLServer | MariaDBServer | MySQLServer

    @property
    def url(self) -> str:
        return self.server.url_of(self.name)

    @property
    def is_mariadb(self) -> bool:
        return self.server.name == "mariadb"

    def connect(self, *, autocommit: bool = True) -> pymysql.connections.Connection[Any]:
        """Return another session in UTC; the test closes it."""
        address = Address.parse(self.url)
        return pymysql.connect(
            host=address.host,
            port=address.port,
            user=address.user,
            password=address.password.encode(),
            database=self.name,
            charset="utf8mb4",
            autocommit=autocommit,
            init_command="SET time_zone = '+00:00'",
            local_infile=True,
        )

    def execute(self, *statements: str, setting: str | None = None) -> None:
        """Run these in one session after `SET SESSION setting`, each in its own transaction unless BEGIN opens one."""
        with closing(self.connect()) as connection, connection.cursor() as cursor:
            for statement in (*([f"SET SESSION {setting}"] if setting else []), *statements):
                cursor.execute(statement)

    def fetch(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        with closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(statement, arguments or None)
            return list(cursor.fetchall())

    def end_of_log(self) -> BinlogPosition:
        """Return where the next transaction will be."""
        statement = "SHOW MASTER STATUS" if self.is_mariadb else "SHOW BINARY LOG STATUS"
        file, offset = self.fetch(statement)[0][:2]
        return BinlogPosition(file=file, offset=offset)

    def purge_logs(self) -> None:
        """Purge the server's whole log up to now."""
        self.execute("FLUSH BINARY LOGS")
        self.purge_logs_before(self.newest_log())

    def purge_logs_before(self, file: str) -> None:
        """Purge the files of the server's log that are older than this one."""
        # A file that a replica has just released cannot be purged at once.
        wait_until(lambda: self._is_purged_to(file), what="the old logs to be gone", timeout=30)

    def newest_log(self) -> str:
        """Return the name of the file that the server is writing to."""
        return str(self.fetch("SHOW BINARY LOGS")[-1][0])

    def reset_log(self) -> None:
        """Reset the server's log in a later second than that of its creation: a log has its time in seconds."""
        born = log_created_at(self.url, self.newest_log())
        wait_until(lambda: time.time() >= born + 1, what="the next second")
        self.execute("RESET MASTER" if self.is_mariadb else "RESET BINARY LOGS AND GTIDS")

    def _is_purged_to(self, newest: str) -> bool:
        self.execute(f"PURGE BINARY LOGS TO '{newest}'")
        return bool(self.fetch("SHOW BINARY LOGS")[0][0] == newest)


@dataclass
class MySQLSource:
    """Watch a database; leave it to stop the monitor."""

    database: MySQLDatabase
    name: str = "test"
    position: str | None = None
    _monitor: BinlogMonitor | None = None
    _stack: ExitStack = field(default_factory=ExitStack)

    def watch(self, *tables: str, **options: Any) -> None:
        """Start the monitor, with a route for all events of each of these tables (names or globs)."""
        router = BinlogRouter()
        for table in tables or ("*",):
            router.register(self.database.name, table, EventType.ALL, "a.task")
        self._monitor = BinlogMonitor(self.database.url, name=self.name, routes=router.routes, **options)
        self._stack.callback(self._monitor.close)
        self._monitor.open(saved=Saved(self.position) if self.position else None)
        self._batches = self._monitor.batches(self.position)
        self.position = next(self._batches).position

    def stop(self) -> None:
        """Stop the monitor; `watch` starts another that continues from there."""
        self._stack.close()

    def execute(self, *statements: str, setting: str | None = None) -> None:
        self.database.execute(*statements, setting=setting)

    def changes(self, count: int, *, timeout: float = 30) -> list[Change]:
        """Return the next `count` changes; fail if other changes arrive, or none."""
        found: list[Change] = []
        deadline = Deadline(timeout)
        for batch in self._batches:
            found.extend(batch.changes)
            self.position = batch.position
            if len(found) >= count:
                break
            deadline.check(f"{len(found)} of {count} changes came")
        assert len(found) == count, [each.to_json() for each in found]
        return found

    def rest(self) -> list[Change]:
        """Return the remaining changes in the log."""
        found: list[Change] = []
        for batch in self._batches:
            found.extend(batch.changes)
            self.position = batch.position
            if not batch.changes:
                break
        return found

    @property
    def decoder(self) -> Decoder:
        """The current decoder of the log."""
        assert self._monitor is not None
        return self._monitor._decoder

    def reads(self, table: str) -> list[Change]:
        """Return the rows of a small table, as a backfill reads them."""
        assert self._monitor is not None
        request = ChunkRequest(backfill="b1", schema=self.database.name, table=table, limit=1000)
        self._monitor.read_chunk(request)
        deadline = Deadline(20)
        for batch in self._batches:
            if batch.chunk is not None:
                assert batch.chunk.error is None, batch.chunk.error
                return list(batch.chunk.rows)
            deadline.check("the rows came")
        raise AssertionError("the batches ended")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


class NumberSource(MySQLSource):
    """A source whose table `t` has only numbers, on a server that a test may damage."""

    @classmethod
    def on(cls, server: MariaDBServer | MySQLServer) -> Self:
        """Recreate its database and table."""
        name = "own"
        MySQLDatabase(name="", server=server).execute(
            f"DROP DATABASE IF EXISTS {name}", f"CREATE DATABASE {name}"
        )
        source = cls(MySQLDatabase(name=name, server=server), name=name)
        source.execute("CREATE TABLE t (id int PRIMARY KEY)")
        return source

    def insert(self, *numbers: int) -> None:
        """Insert each number in its own transaction."""
        self.execute(*(f"INSERT INTO t VALUES ({number})" for number in numbers))

    def numbers(self, count: int) -> list[int]:
        """Return those of the next `count` changes."""
        return [each.row["id"] for each in self.changes(count)]
