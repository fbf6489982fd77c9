"""The cache is correct after any change of the tables, whichever process dies."""

from __future__ import annotations

import json
import random
import threading
from typing import TYPE_CHECKING, Any

import redis

from harness.embedded_servers import ValkeyServer
from harness.waiting import wait_until
from harness.worker import Worker, unacknowledged
from tests.support.forked_workers import ForkedWorkers

if TYPE_CHECKING:
    from tests.support.helpdesk import HelpDesk

_CHANGES = 1000
_TABLES = ("roles", "departments", "priorities")


def test_an_empty_redis_is_filled_when_a_worker_starts(helpdesk: HelpDesk) -> None:
    helpdesk.database.execute("DROP TABLE departments CASCADE")  # a database may lack some of them
    helpdesk.database.execute("INSERT INTO roles (name) VALUES ('Admin')")
    with Worker(helpdesk.environment) as worker:
        keys = ["master:roles", "master:priorities", "master:statuses", "master:statuses:open"]
        wait_until(lambda: helpdesk.broker.cache.exists(*keys) == len(keys), what="the keys")
        wait_until(
            lambda: worker.events("master_cache_not_refilled"), what="the log line about the missing table"
        )
    assert [row["name"] for row in _cached(helpdesk.broker.cache, "roles")] == ["Admin"]
    assert not helpdesk.broker.cache.exists("cdc:dead-letters")


def test_after_a_thousand_changes_killed_workers_and_a_restarted_redis_the_cache_equals_the_tables(
    helpdesk: HelpDesk,
) -> None:
    with ValkeyServer(append_only=True) as server, ForkedWorkers(_environment(helpdesk, server)) as workers:
        cache = redis.Redis.from_url(server.url_of(1), socket_timeout=5)
        reader = _Reader(server)
        trouble = iter([lambda: workers.kill(running), server.restart, lambda: workers.kill(running)])
        running = workers.start()
        for number in range(1, _CHANGES + 1):
            table = random.choice(_TABLES)
            _change(helpdesk, table, number)
            _refresh(helpdesk, server, table)
            if number % 100 == 50:
                _refresh(helpdesk, server, random.choice(_TABLES))  # a refresh by hand
            if number % 300 == 0:
                next(trouble)()
                running = workers.start()
        wait_until(lambda: _equal(helpdesk, cache), timeout=30, what="the cache to equal the tables")
        wait_until(lambda: _all_done(server), timeout=30, what="all refreshes")
        assert _equal(helpdesk, cache)
        for number in range(1, 6):
            _change(helpdesk, "roles", _CHANGES + number)
            _refresh(helpdesk, server, "roles")
            wait_until(lambda: _equal(helpdesk, cache), what="the change to be in the cache")
        reader.stop()
    assert reader.reads > 100
    assert reader.steps_back == []


class _Reader:
    """Reads a counter that only grows, and records when it decreases."""

    def __init__(self, server: ValkeyServer) -> None:
        self.steps_back: list[tuple[int, int]] = []
        self.reads = 0
        self._client = redis.Redis.from_url(server.url_of(1), socket_timeout=5)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        newest = 0
        while not self._stopped.wait(0.01):
            try:
                rows = _cached(self._client, "roles")
            except redis.ConnectionError:
                continue  # the server is restarting
            seen = max((int(row["description"] or 0) for row in rows), default=0)
            if seen < newest:
                self.steps_back.append((newest, seen))
            newest = max(newest, seen)
            self.reads += bool(rows)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._client.close()


def _environment(helpdesk: HelpDesk, server: ValkeyServer) -> dict[str, str]:
    addresses = {"CELERY_BROKER_URL": server.url, "CACHE_URL": server.url_of(1)}
    return {
        **helpdesk.environment,
        **addresses,
        "CELERY_CONFIG_MODULE": "tests.support.celery_settings.short_lease",
    }


def _change(helpdesk: HelpDesk, table: str, number: int) -> None:
    """Insert, update or delete a row; in `roles` the greatest description only grows."""
    name = f"{table} {random.randrange(20)}"
    if table != "roles" and random.random() < 0.3:
        helpdesk.database.execute(
            f"DELETE FROM {table} WHERE name = %s AND name NOT IN (SELECT priority FROM tickets)", name
        )
        return
    column = {"roles": "description", "priorities": "rank"}.get(table)
    if column is None:
        helpdesk.database.execute(f"INSERT INTO {table} (name) VALUES (%s) ON CONFLICT DO NOTHING", name)
        return
    helpdesk.database.execute(
        f"INSERT INTO {table} (name, {column}) VALUES (%s, %s)"
        f" ON CONFLICT (name) DO UPDATE SET {column} = excluded.{column}",
        name,
        number,
    )


def _refresh(helpdesk: HelpDesk, server: ValkeyServer, table: str) -> None:
    wait_until(lambda: _is_up(server), what="Redis")
    helpdesk.send("cdc_tasks.refresh_master_cache", table, queue="cdc_cache", broker_url=server.url)


def _is_up(server: ValkeyServer) -> bool:
    try:
        with redis.Redis.from_url(server.url) as client:
            return bool(client.ping())
    except redis.ConnectionError:
        return False


def _equal(helpdesk: HelpDesk, cache: redis.Redis) -> bool:
    for table in _TABLES:
        [(rows,)] = helpdesk.database.fetch(
            f"SELECT coalesce(json_agg({table} ORDER BY id), '[]') FROM {table}"
        )
        if _cached(cache, table) != rows:
            return False
    return True


def _cached(cache: redis.Redis, table: str) -> list[dict[str, Any]]:
    found = cache.get(f"master:{table}")
    return json.loads(found) if found else []


def _all_done(server: ValkeyServer) -> bool:
    with redis.Redis.from_url(server.url) as client:
        return not client.llen("cdc_cache") and not unacknowledged(client)
