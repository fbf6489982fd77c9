"""An upgrade in the middle of traffic: an earlier version is stopped, and this one goes on.

    make chaos ARGS="--target upgrade --changes 500 --kills 0"      # SIGTERM, as docs/how-to/upgrade.md says
    make chaos ARGS="--target upgrade --changes 500"                # SIGKILL
    make chaos ARGS="--target upgrade --changes 500 --source mysql --broker rabbitmq --old 0230bf3"

Clients write to a shop and to the help desk all the time. The old worker ends first, so that the queues have
messages of the old listener, and retries that wait; then the old listener ends. There are parked changes and dead
letters, which the new version replays. In the end each committed change has run, and each ticket's message was sent,
once.

`python -m tests.acceptance.upgrade 69e654e >tests/acceptance/left_by_0_1_0.json` captures what version 0.1.0 leaves
behind, for a test that needs no history: `test_upgrade.py`.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal, Self

import psycopg2
import redis
from cryptography.fernet import Fernet

from harness.embedded_servers import PostgresServer, ValkeyServer
from harness.given_mysql import server_of_kind
from harness.listener_process import ListenerProcess
from harness.machine_servers import RabbitMQServer
from harness.waiting import wait_until
from harness.worker import Worker
from tests.acceptance.upgraded_shop import BROKEN, EACH_BILLED, EACH_PARKED, EACH_RETRIED, NOTED
from tests.support.mysql.source import MySQLDatabase
from tests.support.social_stub import SocialStub

__all__ = ["VERSION_0_1_0", "Upgrade", "unpack_version"]

VERSION_0_1_0: Final = "69e654e"

_CHECKOUT: Final = Path(__file__).resolve().parents[2]
_NAME: Final = "upgraded"
_TABLES: Final = (
    "CREATE TABLE orders (id int PRIMARY KEY, version int NOT NULL)",
    "INSERT INTO users (name, email) VALUES ('Anna', 'anna@example.com'), ('Carl', 'carl@example.com')",
)
_HALF_PUBLISHED: Final = (201, 202, 203)  # orders
_PEEK: Final = """
SELECT data FROM pg_logical_slot_peek_binary_changes(
  %s, NULL, NULL, 'proto_version', '1', 'publication_names', %s)"""
_LEFT: Final = 4  # messages in the queue "bulk"
_EACH_TICKET: Final = 20  # transactions
_ROLLED_BACK: Final = 0.1  # of the transactions


def unpack_version(ref: str, directory: Path) -> Path:
    """Write the code of a commit or tag to the directory, and return it; CalledProcessError if there is no such ref."""
    packed = subprocess.run(["git", "archive", ref], cwd=_CHECKOUT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=BytesIO(packed)) as archive:
        archive.extractall(directory, filter="data")
    return directory


class Upgrade:
    """Servers, the directory of the old version, and what clients have committed."""

    def __init__(
        self,
        old: Path,
        *,
        seed: int,
        source: Literal["postgresql", "mysql", "mariadb"] = "postgresql",
        broker: Literal["redis", "rabbitmq"] = "redis",
        said: Callable[[str], None] = print,
    ) -> None:
        self._old = old
        self._said = said
        self._dice = random.Random(seed)
        self._server: Any = PostgresServer() if source == "postgresql" else server_of_kind(source)
        self._redis = ValkeyServer(append_only=True)
        self._rabbitmq = RabbitMQServer() if broker == "rabbitmq" else None
        self._social = SocialStub()
        self.committed: set[str] = set()
        self.tickets: list[str] = []
        self._newest = 0
        self._inserted: list[int] = []  # by `insert`
        self._orders: dict[int, int] = {}  # their versions
        self._kept: dict[int, int] = {}  # those that are committed

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for each in filter(None, (self._server, self._redis, self._rabbitmq, self._social)):
                stack.enter_context(each)
            self.client = stack.enter_context(redis.Redis.from_url(self._redis.url_of(2)))
            self._app = Path(stack.enter_context(TemporaryDirectory()))
            shutil.copy(Path(__file__).with_name("upgraded_shop.py"), self._app)
            self._prepare()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, transactions: int, *, killed: bool = False) -> list[str]:
        """Upgrade in the middle of four times that many transactions; return what is wrong.

        `killed`: the old listener and worker end with SIGKILL instead of SIGTERM; a task may run twice then.
        """
        self.client.set(BROKEN, 1)
        self._run_old(transactions, killed=killed)
        self._write(transactions)
        self.told_between()
        self._run_new(transactions)
        return list(self._faults(repeats=killed or self._rabbitmq is not None))

    def told_between(self) -> None:
        """Tell what the old version has left behind."""
        for number in (0, 1):
            with redis.Redis.from_url(self._redis.url_of(number)) as client:
                for key in sorted(client.scan_iter("*")):
                    self._said(f"left in {number}: {key.decode()} ({client.type(key).decode()})")

    def capture(self) -> dict[str, Any]:
        """Run the old version alone for a moment; return what it leaves behind, and the rows that it is about.

        There are messages of each kind in its queues, one that waits for its retry, a parked change, a dead letter.
        Its worker is killed.
        """
        self.client.set(BROKEN, 1)
        old = {**self.environment(self._old), "SHOP_BROKEN": "1"}
        with ListenerProcess(old, checkout=self._old) as listener:
            listener.wait_for("streaming", timeout=60)
            with Worker(old, checkout=self._old) as worker:
                self.insert(1, EACH_RETRIED, EACH_PARKED, EACH_BILLED)
                wait_until(self._has_letter_and_retry, what="a dead letter, and a retry", timeout=60)
                worker.kill()
            with closing(self._connect(_NAME, autocommit=False)) as connection:
                self._write_ticket(connection)
            self.insert(2, 2 * EACH_RETRIED, 2 * EACH_BILLED)
            wait_until(lambda: self._queued("bulk") >= _LEFT, what="messages", timeout=60)
            listener.stop()
        done = sorted(each.decode() for each in self.client.lrange(NOTED, 0, -1))
        left = [self._dump(number) for number in (0, 1)]
        return {"orders": sorted(self._inserted), "done": done, "left": left, **self._database_state()}

    def insert(self, *orders: int) -> None:
        """Insert these orders in one transaction."""
        with closing(self._connect(_NAME)) as connection:
            values = ", ".join(f"({order}, 1)" for order in orders)
            connection.cursor().execute(f"INSERT INTO orders (id, version) VALUES {values}")
        for order in orders:
            self.committed.update(_noted_of_insert(order))
        self._inserted += orders

    def _has_letter_and_retry(self) -> bool:
        with (
            redis.Redis.from_url(self._redis.url) as broker,
            redis.Redis.from_url(self._redis.url_of(1)) as cache,
        ):
            return broker.hlen("unacked") == 1 and cache.hlen("cdc:dead-letters") == 1

    def _queued(self, queue: str) -> int:
        with redis.Redis.from_url(self._redis.url) as client:
            return int(client.llen(queue))

    def _dump(self, number: int) -> dict[str, Any]:
        with redis.Redis.from_url(self._redis.url_of(number), decode_responses=True) as client:
            return {key: _value(client, key) for key in sorted(client.scan_iter("*"))}

    def _database_state(self) -> dict[str, Any]:
        with closing(self._connect(_NAME)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT system_identifier FROM pg_control_system()")
            (system,) = cursor.fetchone()
            cursor.execute("SELECT tablename, attnames FROM pg_publication_tables ORDER BY tablename")
            return {"system": f"{system:x}", "publication": dict(cursor.fetchall())}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put in place what `capture` returned, and a transaction of which the first change was published."""
        for number, keys in enumerate(state["left"]):
            with redis.Redis.from_url(self._redis.url_of(number)) as client:
                for key, value in keys.items():
                    _put(client, key, value)
        self.client.rpush(NOTED, *state["done"])
        self.insert(*state["orders"])
        with closing(self._connect(_NAME, autocommit=False)) as connection:
            self._write_ticket(connection)
        self._publish_as_before(state["publication"])
        self.insert(*_HALF_PUBLISHED)
        published = _noted_of_insert(_HALF_PUBLISHED[0])
        self.committed.difference_update(published)
        with redis.Redis.from_url(self._redis.url) as client:
            checkpoint = {
                "position": f"{self._commit_in_slot()}:0",
                "source": self._database_state()["system"],
            }
            client.hset(f"cdc:{_NAME}:checkpoint", mapping=checkpoint)

    def finish(self) -> list[str]:
        """Let this version do what the old one has left; return what is wrong."""
        self._run_new(0)
        return list(self._faults(repeats=False))

    def _publish_as_before(self, publication: Mapping[str, Sequence[str]]) -> None:
        tables = ", ".join(f"{table} ({', '.join(columns)})" for table, columns in publication.items())
        with closing(self._connect(_NAME)) as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE PUBLICATION {_NAME} FOR TABLE {tables}")
            cursor.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [_NAME])

    def _commit_in_slot(self) -> str:
        """Return where the first transaction of the slot commits."""
        with closing(self._connect(_NAME)) as connection, connection.cursor() as cursor:
            cursor.execute(_PEEK, [_NAME, _NAME])
            begin = next(bytes(data) for (data,) in cursor if bytes(data[:1]) == b"B")
        high, low = struct.unpack_from("!II", begin, 1)
        return f"{high:X}/{low:X}"

    # --- What runs ----------------------------------------------------------------------------------------

    def _run_old(self, transactions: int, *, killed: bool) -> None:
        old = {**self.environment(self._old), "SHOP_BROKEN": "1"}
        with (
            ListenerProcess(old, checkout=self._old) as listener,
            Worker(old, checkout=self._old) as worker,
        ):
            listener.wait_for("streaming", timeout=60)
            self._write(transactions)
            wait_until(lambda: self.client.llen(NOTED), what="a task of the old version", timeout=60)
            worker.kill() if killed else worker.stop()
            self._said(f"old worker {'killed' if killed else 'ended'}; {self.client.llen(NOTED)} tasks noted")
            self._write(transactions)
            wait_until(self._is_parked, what="a parked change", timeout=60)
            listener.kill() if killed else listener.stop()
            self._said(f"old listener {'killed' if killed else 'ended'}")

    def _run_new(self, transactions: int) -> None:
        environment = self.environment(_CHECKOUT)
        with Worker(environment) as worker, ListenerProcess(environment) as listener:
            listener.wait_for("streaming", timeout=60)
            self._write(transactions)
            self._command("cdc_tasks", "give-back-unacked")
            self._wait(lambda: len(self._missing()) <= len(self._failed()), "the tasks to run")
            self.client.delete(BROKEN)
            self._command("listener", "parked", "replay", "--all")
            self._command("cdc_tasks", "dead-letters", "replay", "--all")
            self._wait(lambda: not self._missing() and not self._unsent(), "what failed to run again")
            worker.stop()
            listener.stop()

    def environment(self, checkout: Path) -> dict[str, str]:
        """Return the variables for the version in this directory; this one has its secrets from files."""
        secrets = {
            "DATABASE_URL": self.database_url,
            "CELERY_BROKER_URL": self._rabbitmq.url if self._rabbitmq else self._redis.url,
            "CACHE_URL": self._redis.url_of(1),
            "CDC_SECRET_KEY": self._key,
        }
        return {
            **(self._files(secrets) if checkout == _CHECKOUT else secrets),
            "PYTHONPATH": f"{checkout}{os.pathsep}{self._app}",
            "SHOP_REDIS": self._redis.url_of(2),
            "CDC_ROUTES": "upgraded_shop:setup_router",
            "CDC_TASK_MODULES": "upgraded_shop",
            "CDC_NAME": _NAME,
            "CDC_RATES": "slack=0:0,teams=0:0",
            "SLACK_API_URL": self._social.slack_api_url,
            "TEAMS_ALLOW_LOOPBACK": "true",
        }

    def _files(self, secrets: Mapping[str, str]) -> dict[str, str]:
        for name, value in secrets.items():
            (self._app / name).write_text(f"{value}\n")
        return {f"{name}_FILE": str(self._app / name) for name in secrets}

    def _command(self, module: str, *arguments: str, checkout: Path = _CHECKOUT) -> str:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=checkout,
            env={**os.environ, **self.environment(checkout)},
            input="xoxb-good\n",
            capture_output=True,
            text=True,
            check=False,
        )
        self._said(
            f"{module} {' '.join(arguments)}: status {done.returncode}\n{done.stdout}{done.stderr}".rstrip()
        )
        return done.stdout

    # --- The database -------------------------------------------------------------------------------------

    @property
    def database_url(self) -> str:
        return str(self._server.url_of(_NAME))

    def _prepare(self) -> None:
        self._key = Fernet.generate_key().decode()
        with closing(self._connect("postgres" if self._is_postgres else "mysql")) as connection:
            connection.cursor().execute(f"CREATE DATABASE {_NAME}")
        self._command("cdc_tasks", "create-schema", checkout=self._old)
        more = ("ALTER TABLE orders REPLICA IDENTITY FULL",) if self._is_postgres else ()
        sealed = Fernet(self._key).encrypt(b"xoxb-good").decode()
        account = (
            "INSERT INTO connected_accounts (user_id, service, address, secret)"
            f" VALUES (1, 'slack', 'C0ANNA', '{sealed}')"
        )
        with closing(self._connect(_NAME)) as connection, connection.cursor() as cursor:
            for statement in (*_TABLES, *more, account):
                cursor.execute(statement)

    @property
    def _is_postgres(self) -> bool:
        return isinstance(self._server, PostgresServer)

    def _connect(self, name: str, *, autocommit: bool = True) -> Any:
        if not self._is_postgres:
            return MySQLDatabase(name=name, server=self._server).connect(autocommit=autocommit)
        connection = psycopg2.connect(self._server.url_of(name))
        connection.autocommit = autocommit
        return connection

    def _write(self, transactions: int) -> None:
        with closing(self._connect(_NAME, autocommit=False)) as connection:
            for number in range(transactions):
                self._write_transaction(connection)
                if number % _EACH_TICKET == 0:
                    self._write_ticket(connection)

    def _write_transaction(self, connection: Any) -> None:
        """Insert, update or delete a few orders; note what is committed as the tasks note it."""
        done: list[str] = []
        with connection.cursor() as cursor:
            for _ in range(self._dice.randint(1, 8)):
                done += self._write_order(cursor)
        if self._dice.random() < _ROLLED_BACK:
            connection.rollback()
            self._orders = dict(self._kept)
            return
        connection.commit()
        self._kept = dict(self._orders)
        self.committed.update(done)

    def _write_order(self, cursor: Any) -> Iterator[str]:
        if not self._orders or self._dice.random() < 0.5:
            self._newest += 1
            self._orders[self._newest] = 1
            cursor.execute("INSERT INTO orders (id, version) VALUES (%s, 1)", [self._newest])
            yield from _noted_of_insert(self._newest)
            return
        order = self._dice.choice(list(self._orders))
        if self._dice.random() < 0.2:
            version = self._orders.pop(order)
            cursor.execute("DELETE FROM orders WHERE id = %s", [order])
            yield f"delete {order} {version}"
            return
        self._orders[order] += 1
        cursor.execute("UPDATE orders SET version = version + 1 WHERE id = %s", [order])
        yield f"update {order} {self._orders[order]}"

    def _write_ticket(self, connection: Any) -> None:
        title = f"Ticket {len(self.tickets) + 1} is new"
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO tickets (title, assigned_to_id, created_by_id) VALUES (%s, 1, 2)", [title]
            )
        connection.commit()
        self.tickets.append(title)

    # --- What came of it ----------------------------------------------------------------------------------

    def _noted(self) -> Counter[str]:
        return Counter(each.decode() for each in self.client.lrange(NOTED, 0, -1))

    def _missing(self) -> set[str]:
        return self.committed - self._noted().keys()

    def _failed(self) -> set[str]:
        """Return what waits for a person: what is parked, and the dead letters."""
        return {each for each in self.committed if each.startswith(("parked ", "bill "))}

    def _unsent(self) -> list[str]:
        sent = [each.text for each in self._social.posted]
        return [title for title in self.tickets if not any(title in text for text in sent)]

    def _is_parked(self) -> bool:
        for number in (0, 1):
            with redis.Redis.from_url(self._redis.url_of(number)) as client:
                if any(client.scan_iter(f"*cdc:{_NAME}:parked")):
                    return True
        return False

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        wait_until(condition, what=what, timeout=60, every=0.5)

    def _faults(self, *, repeats: bool) -> Iterator[str]:
        noted = self._noted()
        yield from (f"lost: {each}" for each in sorted(self._missing()))
        yield from (f"invented: {each}" for each in sorted(noted.keys() - self.committed))
        twice = {each: count for each, count in noted.items() if count > 1}
        if repeats:
            self._said(f"{len(twice)} ran more than once, as they may")
        else:
            yield from (f"{count} times: {each}" for each, count in twice.items())
        texts = [each.text for each in self._social.posted]
        for title in self.tickets:
            count = sum(title in text for text in texts)
            if count != 1:
                yield f"{count} messages: {title}"
        self._said(f"{len(self.committed)} tasks, {len(self.tickets)} tickets")


def _value(client: redis.Redis, key: str) -> Any:
    """Return what is at a key: a str, a list (sorted if it is a set), a dict, or a list of pairs (a sorted set)."""
    read: dict[str, Callable[[], Any]] = {
        "string": lambda: client.get(key),
        "list": lambda: client.lrange(key, 0, -1),
        "set": lambda: {"set": sorted(client.smembers(key))},
        "hash": lambda: client.hgetall(key),
        "zset": lambda: {"zset": client.zrange(key, 0, -1, withscores=True)},
    }
    return read[str(client.type(key))]()


def _put(client: redis.Redis, key: str, value: Any) -> None:
    """Write what `_value` returned."""
    if isinstance(value, str):
        client.set(key, value)
    elif isinstance(value, list):
        client.rpush(key, *value)
    elif "set" in value:
        client.sadd(key, *value["set"])
    elif "zset" in value:
        client.zadd(key, dict(value["zset"]))
    else:
        client.hset(key, mapping=value)


def _noted_of_insert(order: int) -> Iterator[str]:
    yield f"insert {order} 1"
    yield f"index {order} 1"
    if order % EACH_BILLED == 0:
        yield f"bill {order} 1"
    if order % EACH_PARKED == 0:
        yield f"parked {order} 1"


def _capture(ref: str) -> None:
    """Print what the version of this commit or tag leaves behind, without names of this machine."""
    with (
        TemporaryDirectory() as directory,
        Upgrade(unpack_version(ref, Path(directory)), seed=0, said=_to_stderr) as upgrade,
    ):
        text = json.dumps(upgrade.capture(), indent=1)
    host, home = os.uname().nodename, tempfile.gettempdir()
    text = re.sub(rf"{re.escape(home)}/\w+/", "/app/", text)
    sys.stdout.write(re.sub(rf"@{re.escape(host)}\b", "@host", text) + "\n")


def _to_stderr(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    _capture(*sys.argv[1:])
