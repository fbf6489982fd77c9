"""The whole system as real processes: what the chaos tests attack."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Final, Self

import psycopg2
import redis

from harness.embedded_servers import PostgresServer, ValkeyServer
from harness.listener_process import ListenerProcess
from harness.waiting import wait_until
from tests.acceptance.checker import EXPECTED, faults, read_message, read_queue
from tests.acceptance.ledger import KEEP_LOG, Ledger
from tests.acceptance.network import Cable
from tests.acceptance.writers import Writers

__all__ = ["World"]

_RECOVERY: Final = 90.0  # seconds until it must go on by itself after any one attack
_NAME: Final = "chaos"


class World:
    """A database, a broker whose append-only file is always on disk, the network to both, and a listener."""

    def __init__(
        self,
        *,
        seed: int,
        database: type[PostgresServer] = PostgresServer,
        broker: type[ValkeyServer] = ValkeyServer,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """`settings` are more of the listener's variables."""
        self.dice = random.Random(seed)
        self.database = database(settings=KEEP_LOG)
        self.broker = broker(append_only=True, arguments=["--appendfsync", "always"])
        self._settings = settings or {}
        self._listener: ListenerProcess | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            servers = [stack.enter_context(each) for each in (self.database, self.broker)]
            self.cables = [stack.enter_context(Cable(server.port)) for server in servers]
            self._prepare()
            stack.callback(self._forget_listener)
            self.wait_for_streaming()  # what is committed before there is a slot is not its business
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _prepare(self) -> None:
        """Make the tables, and a record of what is committed."""
        self.ledger = Ledger(self.database, self.database.url)

    @property
    def database_url(self) -> str:
        return self.database.url

    def writers(self, *, seed: int, rows_per_second: int) -> Any:
        """Return clients that are to write with this rate each, and work until the end of a `with` block."""
        return Writers(self.database_url, seed=seed, rows_per_second=rows_per_second)

    def committed_by_kind(self) -> dict[str, int]:
        """Return how many changes of each kind were committed so far, and how many tasks."""
        return self.ledger.count()

    @property
    def environment(self) -> dict[str, str]:
        """What the listener is told; it sees the servers through the cables."""
        database, broker = self.cables
        broker_url = self.broker.url.replace(f":{self.broker.port}/", f":{broker.port}/")
        return {
            "DATABASE_URL": self.database_url.replace(f":{self.database.port}/", f":{database.port}/"),
            "CELERY_BROKER_URL": broker_url,
            "CACHE_URL": broker_url,  # `check` asks it, before a reload
            "CDC_NAME": _NAME,
            "CDC_ROUTES": "tests.acceptance.chaos_routes:setup_router",
            "CDC_DURABILITY": "fsync",
            **self._settings,
        }

    @property
    def listener(self) -> ListenerProcess:
        """The one that runs; started if none does."""
        return self._listener or self.start_listener()

    def start_listener(self, park: tuple[str, int] | None = None) -> ListenerProcess:
        """Start one, which parks at a point if told so (`ListenerProcess`); none must be running."""
        self._forget_listener()
        self._listener = ListenerProcess(self.environment, park=park)
        return self._listener

    def kill_listener(self) -> None:
        self.listener.check_alive()
        self._forget_listener()

    def end_listener(self) -> None:
        """SIGTERM, on which it has to end with status 0."""
        status = self.listener.stop()
        assert status == 0, f"status {status} after SIGTERM:\n{self.listener.log[-3000:]}"
        self._forget_listener()

    def end_wal_senders(self) -> None:
        """Make the server end every replication connection."""
        with self.database_connection() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")

    def published(self) -> int:
        """How many messages the broker holds; -1 while it is away."""
        try:
            with redis.Redis.from_url(self.broker.url, socket_timeout=5) as client:
                return sum(client.llen(queue) for queue in EXPECTED)
        except redis.RedisError:
            return -1

    def wait_for_streaming(self) -> None:
        """Wait until the listener reads from its slot; started if there is none."""
        self.listener.wait_for("streaming", timeout=_RECOVERY)

    def wait_for_progress(self) -> None:
        """Wait until more is published than now; fails where the listener ends, or stands still."""
        before = self.published()
        self._wait(lambda: self.published() > before, what="go on")

    def settle(self) -> list[str]:
        """Let the listener come to the end of the log, and return what is wrong in the queues."""
        with self.database_connection() as connection, connection.cursor() as cursor:
            cursor.execute("INSERT INTO accounts (owner) VALUES (-1); INSERT INTO events (owner) VALUES (-1)")
        committed = self.ledger.read()
        with redis.Redis.from_url(self.broker.url) as client:
            self._wait_for_end(client, committed[-1].position)
            self.end_listener()
            return faults({queue: read_queue(client, queue) for queue in EXPECTED}, committed)

    def database_connection(self) -> Any:
        return psycopg2.connect(self.database.url)

    def _wait_for_end(self, client: redis.Redis, position: tuple[int, int]) -> None:
        def is_there() -> bool:
            newest = map(read_message, client.lrange("cdc_bulk", 0, 100))  # coalesced tasks may be on top
            return any(message.position >= position for message in newest)

        while not is_there():  # however long the way, it must not stand still
            before = self.published()
            self._wait(lambda before=before: is_there() or self.published() > before, what="go on")
        sizes = [-1, self.published()]
        while sizes[-1] != sizes[-2]:  # nor is anything held back to fill a batch
            time.sleep(2)
            sizes.append(self.published())

    def _wait(self, condition: Callable[[], bool], *, what: str) -> None:
        def is_so() -> bool:
            self.listener.check_alive()
            return condition()

        try:
            wait_until(is_so, timeout=_RECOVERY, what=f"the listener to {what}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.listener.log[-3000:]}") from None

    def _forget_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
