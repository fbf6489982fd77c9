"""Ten incidents, one after the other: Prometheus scrapes listeners, and each incident raises its own alert alone.

    make chaos ARGS="--target alerts"

Each has a minute to raise its alert, with the waits of the real rules. From its beginning until all is well again no
other alert may fire.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Self

import psycopg2
import redis

from cdc_tasks.dead_letters import store as dead_letters
from harness.embedded_servers import PostgresServer, ValkeyServer
from harness.listener_process import ListenerProcess
from harness.machine_servers import PrometheusServer
from harness.server_process import free_port
from harness.waiting import wait_until
from harness.worker import Worker
from listener.postgres.client.connection import connect_replication
from tests.support.operators import Operator

__all__ = ["Incidents"]

_CHECKOUT = Path(__file__).resolve().parents[2]
_RULES: Final = _CHECKOUT / "deploy" / "prometheus" / "alerts.yml"
_LONGEST: Final = 60.0  # seconds until an alert
_CALM: Final = 180.0  # seconds until it is over
_ROUTES: Final = """
from listener.router import BinlogRouter
router = BinlogRouter()
router.register("public", "orders", "insert", "faulty.fails", queue="cdc_bulk")
router.register("public", "wrong", "insert", "faulty.counts", args=lambda change: [change.row["absent"]])
"""
_TABLES: Final = "CREATE TABLE orders (id serial PRIMARY KEY); CREATE TABLE wrong (id serial PRIMARY KEY)"
# A listener may keep 64 MB of log; then it is lost.
_SMALL: Final = {"max_slot_wal_keep_size": "64MB", "min_wal_size": "32MB", "max_wal_size": "32MB"}


class Incidents:
    """Two listeners of different names, each with its database, one broker, one cache, and Prometheus."""

    def __init__(self, said: Callable[[str], object]) -> None:
        self._said = said
        self.happened = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        open_ = self._stack.enter_context
        home = Path(open_(TemporaryDirectory()))
        (home / "alert_routes.py").write_text(_ROUTES)
        self._broker, self._cache = open_(ValkeyServer()), open_(ValkeyServer())
        self._small, self._large = open_(PostgresServer(settings=_SMALL)), open_(PostgresServer())
        self._shop = self._environment(home, self._small, "shop", CDC_QUEUE_ALARM="10")
        self._store = self._environment(home, self._large, "store", CDC_LAG_ALARM="4MB")
        self._listener = self._start(self._shop)
        open_(self._start(self._store))
        targets = [each["CDC_METRICS_ADDRESS"] for each in (self._shop, self._store)]
        self._prometheus = open_(PrometheusServer(rules=_RULES, targets=targets))
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self._stack.close()

    def run(self) -> list[str]:
        """Let each incident happen; return what is wrong."""
        wait_until(lambda: len(self._ready()) == 2, what="two listeners that are ready", timeout=60)
        incidents = {
            "CDCListenerDown": ("the listener dead", self._dead),
            "CDCNoLeader": ("standby only", self._standby_only),
            "CDCBrokerAway": ("broker away", self._without_broker),
            "CDCDatabaseAway": ("database away", self._without_database),
            "CDCLogSoonDropped": ("slot near its limit", self._near_limit),
            "CDCQueueNotEmptied": ("queue not emptied", self._without_workers),
            "CDCParkedChanges": ("parked change", self._parked),
            "CDCDeadLetters": ("dead letter", self._dead_letter),
            "CDCRoutePaused": ("route paused", self._paused),
            "CDCLag": ("lag over the limit", self._late),
        }
        self.happened = len(incidents)
        return [
            problem
            for alert, (what, incident) in incidents.items()
            for problem in self._happens(alert, what, incident)
        ]

    def _happens(self, alert: str, what: str, incident: Callable[[], Any]) -> Iterator[str]:
        """Let one happen until its alert fires, and end it; yield what is wrong."""
        seen: set[str] = set()
        with incident():
            began = time.monotonic()
            is_told = self._watch(lambda firing: alert in firing, _LONGEST, seen)
            seconds = time.monotonic() - began
            self._watch(lambda _: time.monotonic() > began + seconds + 10, _LONGEST, seen)
        is_over = self._watch(lambda firing: not firing and len(self._ready()) == 2, _CALM, seen)
        self._said(f"{what:22} {alert:20} after {seconds:3.0f} s" if is_told else f"{what:22} {alert}: never")
        if not is_told:
            yield f"{what}: {alert} did not fire within {_LONGEST:g} s"
        if others := seen - {alert}:
            yield f"{what}: also {', '.join(sorted(others))}"
        if not is_over:
            yield f"{what}: it was not over after {_CALM:g} s"

    def _watch(self, is_enough: Callable[[set[str]], bool], longest: float, seen: set[str]) -> bool:
        """Look until it is enough; add all alerts that fire to `seen`."""
        end = time.monotonic() + longest
        while time.monotonic() < end:
            firing = self._prometheus.firing
            seen |= firing
            if is_enough(firing):
                return True
            time.sleep(0.2)
        return False

    def _ready(self) -> list[Any]:
        return self._prometheus.query("cdc_ready == 1")

    def _environment(self, home: Path, server: PostgresServer, name: str, **more: str) -> dict[str, str]:
        with closing(psycopg2.connect(server.url)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(_TABLES)
        return {
            "DATABASE_URL": server.url,
            "CELERY_BROKER_URL": self._broker.url,
            "CACHE_URL": self._cache.url,
            "CDC_NAME": name,
            "CDC_ROUTES": "alert_routes:router",
            "CDC_METRICS_ADDRESS": f"127.0.0.1:{free_port()}",
            "PYTHONPATH": f"{home}{os.pathsep}{_CHECKOUT}",
            **more,
        }

    def _start(self, environment: dict[str, str]) -> ListenerProcess:
        listener = ListenerProcess(environment)
        listener.wait_for("streaming", timeout=60)
        return listener

    @contextmanager
    def _sql(self, server: PostgresServer) -> Iterator[Callable[[str], None]]:
        with closing(psycopg2.connect(server.url)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                yield cursor.execute

    # --- The incidents: what happens, and how it ends -----------------------------------------------------------

    @contextmanager
    def _dead(self) -> Iterator[None]:
        self._listener.kill()
        yield
        self._listener.close()
        self._listener = self._start(self._shop)

    @contextmanager
    def _standby_only(self) -> Iterator[None]:
        """Another program takes the slot while the listener connects again."""
        with self._sql(self._small) as sql, closing(connect_replication(self._small.url)) as other:

            def takes_it() -> bool:
                sql(
                    "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'shop'"
                )
                options = {"proto_version": "1", "publication_names": "shop"}
                try:
                    with other.cursor() as cursor:
                        cursor.start_replication(slot_name="shop", options=options, decode=False)
                except psycopg2.errors.ObjectInUse:
                    return False
                return True

            wait_until(takes_it, what="the slot", timeout=60, every=0.0)
            yield

    @contextmanager
    def _without_broker(self) -> Iterator[None]:
        self._broker.kill()
        yield
        self._broker.start()

    @contextmanager
    def _without_database(self) -> Iterator[None]:
        self._small.stop()
        yield
        self._small.start()

    @contextmanager
    def _near_limit(self) -> Iterator[None]:
        with self._held_back(self._small, segments=3):
            yield

    @contextmanager
    def _late(self) -> Iterator[None]:
        with self._held_back(self._large, segments=1):
            yield

    @contextmanager
    def _held_back(self, server: PostgresServer, *, segments: int) -> Iterator[None]:
        """Let a transaction stay open, so that the slot keeps what is logged after it; a segment has 16 MB."""
        with self._sql(server) as sql, closing(psycopg2.connect(server.url)) as holding:
            with holding.cursor() as cursor:
                cursor.execute("CREATE TABLE held ()")
            for _ in range(segments):
                sql("SELECT pg_logical_emit_message(false, 'x', 'y'), pg_switch_wal()")
            yield
            holding.rollback()
            for _ in range(3):  # the slot moves when the server has logged which transactions run
                sql("CHECKPOINT")
                sql("SELECT pg_logical_emit_message(true, 'x', 'y')")
                time.sleep(1)

    @contextmanager
    def _without_workers(self) -> Iterator[None]:
        with self._sql(self._small) as sql:
            sql("INSERT INTO orders DEFAULT VALUES")
        yield
        self._forget(self._broker, "cdc_bulk")

    @contextmanager
    def _parked(self) -> Iterator[None]:
        with self._sql(self._small) as sql:
            sql("INSERT INTO wrong DEFAULT VALUES")
        yield
        dropped = Operator(**self._shop).types("parked", "drop", "--all")
        assert dropped.returncode == 0, dropped.stderr

    @contextmanager
    def _dead_letter(self) -> Iterator[None]:
        environment = {**self._shop, "CDC_TASK_MODULES": "tests.support.tasks.faulty"}
        with self._sql(self._small) as sql, Worker(environment):
            sql("INSERT INTO orders DEFAULT VALUES")
            yield
        self._forget(self._cache, dead_letters._KEY, dead_letters._COUNTS)

    @contextmanager
    def _paused(self) -> Iterator[None]:
        operator = Operator(**self._shop)
        assert operator.types("pause", "faulty.fails").returncode == 0
        yield
        assert operator.types("resume", "faulty.fails").returncode == 0

    def _forget(self, server: ValkeyServer, *keys: str) -> None:
        with redis.Redis.from_url(server.url) as client:
            client.delete(*keys)
