"""The whole system on MySQL or MariaDB as real processes, and what has to be in the queue in the end."""

from __future__ import annotations

import json
import random
from base64 import b64decode
from collections import Counter
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final

import redis

from harness.embedded_servers import ValkeyServer
from harness.given_mysql import server_of_kind
from harness.waiting import wait_until
from tests.acceptance.binlog_ledger import TABLES, committed, journal
from tests.acceptance.binlog_writers import BinlogWriters
from tests.acceptance.world import World
from tests.support.mysql.source import MySQLDatabase

if TYPE_CHECKING:
    from harness.given_mysql import MariaDBServer, MySQLServer

__all__ = ["BinlogWorld", "end_of_log", "faults", "prepare", "sent", "wait_for_checkpoint"]

_NAME: Final = "chaos"
_ENQUEUED: Final = "chaos.enqueued"


class BinlogWorld(World):
    """A MySQL or MariaDB, a broker whose append-only file is always on disk, the network to both, and a listener."""

    def __init__(self, kind: str, *, seed: int) -> None:
        self.dice = random.Random(seed)
        self.database = server_of_kind(kind)
        self.broker = ValkeyServer(append_only=True, arguments=["--appendfsync", "always"])
        self._settings = {"CDC_ROUTES": "tests.acceptance.binlog_routes:setup_router"}
        self._listener = None

    @property
    def database_url(self) -> str:
        return self.database.url_of(_NAME)

    def writers(self, *, seed: int, rows_per_second: int) -> BinlogWriters:
        return BinlogWriters(self._chaos, seed=seed, pause=10 / rows_per_second)

    def settle(self) -> list[str]:
        """Let the listener come to the end of the log, and return what is wrong in the queue."""
        wanted = sum(journal(self._chaos).values())
        while (before := self.published()) < wanted:  # however long the way, it must not stand still
            self._wait(lambda before=before: self.published() > before, what="go on")
        self.end_listener()
        with redis.Redis.from_url(self.broker.url) as client:
            return faults(client, committed(self._chaos, self._start), wanted)

    def committed_by_kind(self) -> dict[str, int]:
        return dict(journal(self._chaos))

    def _prepare(self) -> None:
        self._chaos = prepare(self.database)
        self._start = end_of_log(self._chaos)

    def wait_for_streaming(self) -> None:
        super().wait_for_streaming()
        with redis.Redis.from_url(self.broker.url) as client:
            wait_for_checkpoint(client)


def prepare(server: MariaDBServer | MySQLServer) -> MySQLDatabase:
    """Create the database and its tables."""
    MySQLDatabase(name="mysql", server=server).execute(f"CREATE DATABASE {_NAME}")
    database = MySQLDatabase(name=_NAME, server=server)
    database.execute(*TABLES)
    return database


def wait_for_checkpoint(client: redis.Redis) -> None:
    wait_until(lambda: client.keys(f"*cdc:{_NAME}:checkpoint"), what="the first checkpoint")


def end_of_log(database: MySQLDatabase) -> tuple[str, int]:
    end = database.end_of_log()
    return end.file, end.offset


def sent(client: redis.Redis) -> list[dict[str, Any]]:
    """Return the queue's changes and enqueued tasks in the order in which workers would get them."""
    return [_sent(json.loads(raw)) for raw in reversed(client.lrange("cdc_bulk", 0, -1))]


def _sent(envelope: dict[str, Any]) -> dict[str, Any]:
    headers, (arguments, *_) = envelope["headers"], json.loads(b64decode(envelope["body"]))
    if headers["task"] != _ENQUEUED:
        return {**arguments[0], "task": headers["id"]}
    after = {"id": headers["id"], "args": arguments}
    position = headers["argsrepr"].split()[2].rstrip(">")
    return {"table": "tasks", "event": "enqueued", "before": None, "after": after, "unavailable": [],
            "position": position, "task": headers["id"]}  # fmt: skip


def faults(client: redis.Redis, truth: list[Any], count: int) -> list[str]:
    """Return what is wrong, in words; nothing if each change and each task is there once, in commit order."""
    messages = sent(client)
    found = [] if len(truth) == count else [f"the log has {len(truth)} changes, and the journal {count}"]
    twice = Counter(each["task"] for each in messages)
    found += [f"twice: {task}" for task, times in twice.items() if times > 1]
    found += [f"not in full: {each}" for each in messages if each["unavailable"]]
    told = [(each["table"], each["event"], each["before"], each["after"]) for each in messages]
    wrong = [each for each in zip_longest(told, truth) if each[0] != each[1]]
    return found + [f"sent {ours}, and committed was {theirs}" for ours, theirs in wrong[:20]]
