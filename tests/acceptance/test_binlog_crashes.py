"""The listener is killed while clients write to MySQL and MariaDB: each committed change is queued exactly once."""

from __future__ import annotations

import json
import random
import time
from base64 import b64decode
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import redis

from harness.given_mysql import server_of_kind
from harness.listener_process import ListenerProcess
from harness.waiting import wait_until
from tests.acceptance.binlog_ledger import TABLES, committed, journal
from tests.acceptance.binlog_writers import BinlogWriters
from tests.support.mysql.source import MySQLDatabase

if TYPE_CHECKING:
    from harness.given_mysql import MariaDBServer, MySQLServer
    from tests.conftest import Broker

_SEED = 20261122
_KILLS = {"mariadb": 20, "mysql": 20, "mysql without GTIDs": 8, "mysql, compressed": 8}


@pytest.mark.parametrize("kind", _KILLS)
def test_each_change_is_queued_once_in_commit_order_while_the_listener_is_killed(
    kind: str, broker: Broker
) -> None:
    compressed = kind == "mysql, compressed"
    server = server_of_kind("mysql" if compressed else kind)
    if compressed:
        server.arguments.append("--binlog-transaction-compression=ON")
    with server:
        database = _prepare(server)
        environment = {
            "DATABASE_URL": database.url,
            "CELERY_BROKER_URL": broker.url,
            "CACHE_URL": broker.cache_url,
            "CDC_NAME": "chaos",
            "CDC_ROUTES": "tests.acceptance.binlog_routes:setup_router",
        }
        with ListenerProcess(environment) as first:
            first.wait_for("streaming")
            _wait_for_checkpoint(broker.client)
        start = _end_of_log(database)
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
            _check(broker.client, committed(database, start), truth_count)


def _prepare(server: MariaDBServer | MySQLServer) -> MySQLDatabase:
    MySQLDatabase(name="mysql", server=server).execute("CREATE DATABASE chaos")
    database = MySQLDatabase(name="chaos", server=server)
    database.execute(*TABLES)
    return database


def _wait_for_checkpoint(client: redis.Redis) -> None:
    wait_until(lambda: client.keys("*cdc:chaos:checkpoint"), what="the first checkpoint")


def _end_of_log(database: MySQLDatabase) -> tuple[str, int]:
    statement = "SHOW MASTER STATUS" if database.is_mariadb else "SHOW BINARY LOG STATUS"
    row = database.fetch(statement)[0]
    return row[0], row[1]


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


def _messages(client: redis.Redis) -> list[dict[str, Any]]:
    """Return the queue's changes in the order in which workers would get them."""
    messages = []
    for raw in reversed(client.lrange("cdc_bulk", 0, -1)):
        envelope = json.loads(raw)
        (change,) = json.loads(b64decode(envelope["body"]))[0]
        messages.append({**change, "task": envelope["headers"]["id"]})
    return messages


def _check(client: redis.Redis, truth: list[Any], count: int) -> None:
    assert len(truth) == count  # the second decoder and the triggers agree
    messages = _messages(client)
    twice = [task for task, times in Counter(each["task"] for each in messages).items() if times > 1]
    assert not twice
    assert [(each["table"], each["event"], each["before"], each["after"]) for each in messages] == truth
    assert not any(each["unavailable"] for each in messages)


def _check_without_order(client: redis.Redis, counts: Counter[str]) -> None:
    """mysql-replication does not read compressed transactions: there is no second decoder."""
    messages = _messages(client)
    assert len({each["task"] for each in messages}) == len(messages)
    assert Counter(f"{each['table']} {each['event']}" for each in messages) == counts
    places = [each["position"].split(":") for each in messages]
    order = [(int(number), int(ordinal)) for _, number, ordinal in places]
    assert order == sorted(order)
