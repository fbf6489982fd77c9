"""The listener is killed while clients write to MySQL and MariaDB.

Each committed change, and each task that was enqueued with one, is queued exactly once.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from harness.given_mysql import server_of_kind
from harness.listener_process import ListenerProcess
from harness.waiting import wait_until
from tests.acceptance.binlog_ledger import committed, journal
from tests.acceptance.binlog_world import end_of_log, faults, prepare, sent, wait_for_checkpoint
from tests.acceptance.binlog_writers import BinlogWriters

if TYPE_CHECKING:
    import redis

    from tests.conftest import Broker
    from tests.support.mysql.source import MySQLDatabase

_SEED = 20261122
_KILLS = {"mariadb": 6, "mysql": 6, "mysql without GTIDs": 4, "mysql, compressed": 4}


@pytest.mark.parametrize("kind", _KILLS)
def test_each_change_is_queued_once_in_commit_order_while_the_listener_is_killed(
    kind: str, broker: Broker
) -> None:
    compressed = kind == "mysql, compressed"
    server = server_of_kind("mysql" if compressed else kind)
    if compressed:
        server.arguments.append("--binlog-transaction-compression=ON")
    with server:
        database = prepare(server)
        environment = {
            "DATABASE_URL": database.url,
            "CELERY_BROKER_URL": broker.url,
            "CACHE_URL": broker.cache_url,
            "CDC_NAME": "chaos",
            "CDC_ROUTES": "tests.acceptance.binlog_routes:setup_router",
        }
        with ListenerProcess(environment) as first:
            first.wait_for("streaming")
            wait_for_checkpoint(broker.client)
        start = end_of_log(database)
        with BinlogWriters(database, seed=_SEED):
            _kill_again_and_again(database, environment, _KILLS[kind])
        truth_count = sum(journal(database).values())
        with ListenerProcess(environment) as last:
            wait_until(
                lambda: last.check_alive() or broker.client.llen("cdc_bulk") >= truth_count,
                timeout=90,
                what=f"{truth_count} messages",
            )
            time.sleep(1)
            assert last.stop() == 0
        if compressed:
            _check_without_order(broker.client, journal(database))
        else:
            assert faults(broker.client, committed(database, start), truth_count) == []


def _kill_again_and_again(database: MySQLDatabase, environment: dict[str, str], kills: int) -> None:
    dice = random.Random(_SEED)
    for number in range(kills):
        with ListenerProcess(environment) as listener:
            if number % 5:
                listener.wait_for("streaming", timeout=60)
            time.sleep(dice.uniform(0, 1))
            listener.check_alive()
            listener.kill()
        if number % 7 == 3:
            database.execute("FLUSH BINARY LOGS")


def _check_without_order(client: redis.Redis, counts: Counter[str]) -> None:
    """mysql-replication does not read compressed transactions: there is no second decoder."""
    messages = sent(client)
    assert len({each["task"] for each in messages}) == len(messages)
    assert Counter(f"{each['table']} {each['event']}" for each in messages) == counts
    places = [each["position"].split(":") for each in messages]
    order = [(int(number), int(ordinal)) for _, number, ordinal in places]
    assert order == sorted(order)
