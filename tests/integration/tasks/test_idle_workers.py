"""The cost of an idle worker, compared with a stock Celery worker that is idle at the same time."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import redis

from cdc_tasks.broker.clock import CLOCK
from harness.embedded_servers import ValkeyServer
from harness.waiting import wait_until
from harness.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from tests.support.helpdesk import HelpDesk

_HEARTBEATS = 10  # of the stock worker: the time for which both are idle


def test_an_idle_worker_has_about_as_many_connections_and_sends_about_as_many_commands_as_a_stock_worker(
    helpdesk: HelpDesk,
) -> None:
    ours, cache = helpdesk.broker.client, helpdesk.broker.cache
    others = {each["id"] for each in ours.client_list()}  # what other tests have left open
    with _stock_worker() as stock, Worker(helpdesk.environment, mingle=True):
        wait_until(
            lambda: cache.exists("master:statuses", CLOCK) == 2,
            timeout=30,
            what="what it does at the start, and its first look at the clock, seconds later",
        )
        cache.close()
        wait_until(
            lambda: len(_connections(ours, others)) <= len(_connections(stock)) + 2,
            timeout=30,
            what="the connections that are needed at the start to be closed",
        )
        ours_before, stock_before = _commands(ours), _commands(stock)
        wait_until(
            lambda: _heartbeats(stock) - stock_before["publish"] >= _HEARTBEATS,
            timeout=3 * _HEARTBEATS,
            what="the stock worker's heartbeats",
        )
        of_ours = _difference(_commands(ours), ours_before)
        of_stock = _difference(_commands(stock), stock_before)
        assert sum(of_ours.values()) < 2 * sum(of_stock.values()), (of_ours, of_stock)
        assert len(_connections(ours, others)) <= len(_connections(stock)) + 2, _connections(ours, others)


@contextmanager
def _stock_worker() -> Iterator[redis.Redis]:
    with ValkeyServer() as server, redis.Redis.from_url(server.url) as client:
        environment = {"CELERY_BROKER_URL": server.url, "CACHE_URL": server.url_of(1)}
        with Worker(environment, application="tests.support.tasks.stock", mingle=True):
            wait_until(lambda: _heartbeats(client), what="its heartbeats")
            yield client


def _heartbeats(client: redis.Redis) -> int:
    return _commands(client).get("publish", 0)


def _connections(client: redis.Redis, others: Container[str] = ()) -> list[Any]:
    """Return the connections of workers: the last command of each, and how long it has been idle."""
    found = client.client_list()
    return [
        (each["db"], each["cmd"], each["idle"])
        for each in found
        if each["id"] not in others and not _is_ours(each)
    ]


def _is_ours(connection: dict[str, str]) -> bool:
    """Return whether a connection is this test's: a worker never sends such commands."""
    return connection["cmd"] in {"client|list", "info", "flushall"}


def _commands(client: redis.Redis) -> dict[str, int]:
    """Return how often each command has run, also in scripts."""
    stats = client.info("commandstats")
    found = {name.removeprefix("cmdstat_"): int(each["calls"]) for name, each in stats.items()}
    return {name: calls for name, calls in found.items() if name not in {"info", "client|list"}}


def _difference(now: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {name: calls - before.get(name, 0) for name, calls in now.items() if calls != before.get(name, 0)}
