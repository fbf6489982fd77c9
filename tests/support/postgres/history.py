"""A PostgreSQL server whose files can be restored, with a listener that can be restarted many times."""

from __future__ import annotations

import subprocess
import threading
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any, Self

import psycopg2
import redis

from cdc_tasks.changes import RowChange, position_key
from cdc_tasks.errors import CDCError
from harness.embedded_servers import PostgresServer, ValkeyServer
from harness.waiting import at_most, wait_until
from listener.daemon.loop import Listener
from listener.postgres.log.position import parse_lsn
from listener.postgres.monitor import PostgresWALMonitor
from listener.publish.redis.publisher import RedisPublisher
from listener.router import BinlogRouter, EventType
from tests.support.publishing import celery_app, messages

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from listener.postgres.plugins import PluginName

__all__ = ["NAME", "History", "is_later"]

NAME = "cdc"


class History:
    """One server, one broker; the route selects `items`, and not `other`."""

    def __init__(
        self, server_class: type[PostgresServer], plugin: PluginName, settings: dict[str, str] | None = None
    ) -> None:
        self.plugin = plugin
        self.router = BinlogRouter()
        self.router.register("public", "items", EventType.INSERT, "tests.task")
        self.server = server_class(settings=settings)
        self.broker = ValkeyServer(append_only=True)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self.server)
        self._stack.enter_context(self.broker)
        self.execute("CREATE TABLE items (id bigint PRIMARY KEY)")
        self.execute("CREATE TABLE other (id bigint)")
        self.listen(lambda: bool(self.checkpoint))  # later commits are read
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def execute(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        with closing(psycopg2.connect(self.server.url)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            cursor.execute(statement, arguments or None)
            return cursor.fetchall() if cursor.description else []

    def insert(self, first: int, last: int) -> None:
        """Insert each in its own transaction."""
        with closing(psycopg2.connect(self.server.url)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            for number in range(first, last + 1):
                cursor.execute("INSERT INTO items VALUES (%s)", (number,))

    def write_past(self, lsn: str) -> None:
        """Write to `other` until the log ends after this LSN."""
        while self.execute("SELECT pg_current_wal_flush_lsn() > %s::pg_lsn", lsn) != [(True,)]:
            self.execute("INSERT INTO other SELECT generate_series(1, 200)")

    # --- The listener -------------------------------------------------------------------------------------

    def listener(self, **options: Any) -> Listener:
        monitor = PostgresWALMonitor(
            self.server.url,
            slot=NAME,
            publication=NAME,
            routes=self.router.routes,
            plugin=self.plugin,
            **options,
        )
        return Listener(monitor, self.router, RedisPublisher(celery_app(self.broker.url), name=NAME))

    def listen(self, until: Callable[[], bool], **options: Any) -> CDCError | None:
        """Run a listener until `until` returns true, or until it ends by itself; return its error."""
        errors: list[CDCError] = []
        listener = self.listener(**options)

        def run() -> None:
            try:
                listener.run()
            except CDCError as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            wait_until(lambda: errors or until(), timeout=30, what="the listener to publish")
        finally:
            listener.stop()
            thread.join(at_most(20))
        assert not thread.is_alive()
        return errors[0] if errors else None

    def publish(self, first: int, last: int, **options: Any) -> list[RowChange]:
        """Insert rows, and return their changes when a listener has published all."""
        self.insert(first, last)
        return self.published(first, last, **options)

    def published(self, first: int, last: int, **options: Any) -> list[RowChange]:
        """Return the changes of these rows after a listener has published and acknowledged all of them, each once."""
        wanted = list(range(first, last + 1))
        error = self.listen(
            lambda: set(wanted) <= {*self.ids()} and self.is_acknowledged(self.changes()[-1]), **options
        )
        assert error is None, error
        found = [change for change in self.changes() if change.row["id"] in wanted]
        assert [change.row["id"] for change in found] == wanted
        return found

    def changes(self) -> list[RowChange]:
        """Return the published changes, in order."""
        with redis.Redis.from_url(self.broker.url) as client:
            return [RowChange.from_message(message["body"][0][0]) for message in messages(client, "celery")]

    def ids(self) -> list[int]:
        return [change.row["id"] for change in self.changes()]

    @property
    def checkpoint(self) -> str:
        with redis.Redis.from_url(self.broker.url) as client:
            return (client.hget(f"cdc:{NAME}:checkpoint", "position") or b"").decode()

    def keep_checkpoint(self, checkpoint: str) -> None:
        with redis.Redis.from_url(self.broker.url) as client:
            client.hset(f"cdc:{NAME}:checkpoint", "position", checkpoint)

    @property
    def confirmed(self) -> str:
        query = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = %s"
        return str(self.execute(query, NAME)[0][0])

    def is_acknowledged(self, change: RowChange) -> bool:
        place = change.position.rpartition("@")[2].partition(":")[0]
        return parse_lsn(self.confirmed) > parse_lsn(place)

    # --- Copies of the server's files ---------------------------------------------------------------------

    def copy(self) -> None:
        """Keep a cold copy of its current files."""
        self.server.stop()
        self._copy("data", "copy")
        self.server.start()

    def restore(self) -> None:
        """Restore the copy, without later writes."""
        self.server.stop()
        self._copy("copy", "data")
        self.server.start()

    def archive(self) -> None:
        """Archive the log from now on; the server has archive_mode = on."""
        archive = self.server.home / "archive"
        command = f"mkdir -p {archive} && cp %p {archive}/%f"
        self.execute(f"ALTER SYSTEM SET archive_command = '{command}'")
        self.execute("SELECT pg_reload_conf()")

    def restore_to(self, point: str, *, with_slot: bool) -> None:
        """Restore the copy, and the archive up to this restore point."""
        ((segment,),) = self.execute("SELECT pg_walfile_name(pg_switch_wal())")
        archive = self.server.home / "archive"
        wait_until((archive / segment).exists, what="the archive to have all")
        self.server.stop()
        self._copy("copy", "data")
        recovery = {
            "restore_command": f"cp {archive}/%f %p",
            "recovery_target_name": point,
            "recovery_target_action": "promote",
        }
        with (self.server.data_dir / "postgresql.auto.conf").open("a") as settings:
            settings.writelines(f"{name} = '{value}'\n" for name, value in recovery.items())
        (self.server.data_dir / "recovery.signal").touch()
        if not with_slot:  # like pg_basebackup, which leaves it out
            subprocess.run(["/bin/rm", "-rf", str(self.server.data_dir / "pg_replslot" / NAME)], check=True)
        self.server.start()
        wait_until(lambda: self.execute("SELECT pg_is_in_recovery()") == [(False,)], what="it to be promoted")

    def _copy(self, source: str, target: str) -> None:
        home = self.server.home
        subprocess.run(["/bin/rm", "-rf", str(home / target)], check=True)
        subprocess.run(["/bin/cp", "-a", str(home / source), str(home / target)], check=True)


def is_later(change: RowChange, than: list[RowChange]) -> bool:
    """Return whether, by its position, it was committed after all of these."""
    return position_key(change.position) > max(position_key(each.position) for each in than)
