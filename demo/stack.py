"""The whole system on this machine: starting it in order, and stopping it."""

from __future__ import annotations

import os
import queue
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import redis

from cdc_tasks import db, master_cache
from cdc_tasks.celery import app
from cdc_tasks.notify import sealed_secrets
from demo.databases import open_database
from demo.effects import Effects
from demo.inbox import Inbox
from demo.observer import Observation, Observer
from demo.programs import Console, Flower, Listener, Worker
from demo.sample import Sample
from demo.sql_box import SqlBox
from demo.statements import Statements
from harness.embedded_servers import ValkeyServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from demo.databases import DatabaseKind

__all__ = ["Addresses", "Stack", "started"]

_NAME = "cdc_demo"  # CDC_NAME: different from that of a listener on the same servers
# The demo sets these itself; the user's own values are for the user's own system.
_SETTINGS = ("CDC_", "CELERY_", "FLOWER_", "SLACK_", "TEAMS_", "TICKET_", "CACHE_URL", "DATABASE_URL")


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """The addresses of the servers."""

    database: str
    broker: str
    cache: str
    sql: str  # the command that runs a quoted statement


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """The running system."""

    addresses: Addresses
    broker: ValkeyServer | None  # None: the user's own
    sample: Sample
    inbox: Inbox
    box: SqlBox
    observer: Observer
    worker: Worker
    flower: Flower
    console: Console
    listener: Listener

    def check(self) -> None:
        """Raise ServerError if one of the programs has ended."""
        for program in (self.listener, self.worker, self.flower, self.console):
            program.check()

    def observations(self, *, timeout: float) -> Iterator[Observation]:
        """Yield observations for up to `timeout` seconds; raises ServerError if a program ends."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if (observation := self.observer.next(0.2)) is not None:
                yield observation
            else:
                self.check()

    @property
    def log_ends(self) -> str:
        """The last lines of the logs, for an error's text."""
        return "\n  ".join(program.log_end for program in (self.listener, self.worker))


@contextmanager
def started(say: Callable[[str], None], kind: DatabaseKind | None = None) -> Iterator[Stack]:
    """Start everything, and stop it in reverse order at the end; call `say` with the name of what is starting.

    It uses the servers that the environment names and starts the others: a database of `kind`, or PostgreSQL.
    Call it in the main thread, because the programs end with the thread. Raises CDCError.
    """
    observations: queue.SimpleQueue[Observation] = queue.SimpleQueue()
    effects = Effects()

    def see(observation: Observation) -> None:
        effects.see(observation)
        observations.put(observation)

    with ExitStack() as cleanup:
        addresses, valkey = _servers(cleanup, say, kind)
        inbox = cleanup.enter_context(Inbox(see))
        journal = cleanup.enter_context(TemporaryDirectory(prefix="cdc-demo-journal-"))
        _replace_environment({**_environment(addresses, inbox), "CDC_JOURNAL": journal})
        sample = _sample(cleanup, addresses, inbox)
        observer = cleanup.enter_context(Observer(app, addresses.cache, observations, see))
        say("a worker, Flower, the listener and its console")
        flower, worker, listener = Flower(), Worker(), Listener()
        console = Console(flower.url)
        flower.console_url = console.url
        for program in (flower, worker, listener, console):
            cleanup.callback(program.close)
            program.launch()
        for program in (listener, worker, flower, console):
            program.wait()
        pages = {"Console": console.url, "Inbox": inbox.url, "Flower": flower.url}
        box = SqlBox(Statements(db.engine().url), effects, db.engine(), pages)
        cleanup.enter_context(box)
        yield Stack(
            addresses=addresses,
            broker=valkey,
            sample=sample,
            inbox=inbox,
            box=box,
            observer=observer,
            worker=worker,
            flower=flower,
            console=console,
            listener=listener,
        )


def _servers(
    cleanup: ExitStack, say: Callable[[str], None], kind: DatabaseKind | None
) -> tuple[Addresses, ValkeyServer | None]:
    """Return the addresses, and the broker if it is ours."""
    database = open_database(cleanup, say, kind)
    broker, cache = map(os.environ.get, ("CELERY_BROKER_URL", "CACHE_URL"))
    ours = None
    if not broker or not cache:
        say("Valkey")
        valkey = cleanup.enter_context(ValkeyServer(append_only=True))
        ours = None if broker else valkey
        broker, cache = broker or valkey.url, cache or valkey.url_of(1)
    return Addresses(database=database.url, broker=broker, cache=cache, sql=database.sql), ours


def _environment(addresses: Addresses, inbox: Inbox) -> dict[str, str]:
    no_proxy = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1"]))
    return {
        "DATABASE_URL": addresses.database,
        "CELERY_BROKER_URL": addresses.broker,
        "CACHE_URL": addresses.cache,
        "CDC_NAME": _NAME,
        "CDC_ROUTES": "demo.orders:setup_router",
        "CDC_SECRET_KEY": sealed_secrets.new_key(),
        "SLACK_API_URL": inbox.slack_api_url,
        "CDC_RATES": "slack=0:0,teams=0:0",  # no limit: a person is watching, and the inbox has none
        "TEAMS_ALLOW_LOOPBACK": "true",
        "TICKET_BASE_URL": f"{inbox.url}/tickets",
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
    }


def _replace_environment(environment: Mapping[str, str]) -> None:
    """Change the environment of this process: the demo reads it too, and the programs inherit it."""
    for name in [name for name in os.environ if name.startswith(_SETTINGS)]:
        del os.environ[name]
    os.environ.update(environment)


def _sample(cleanup: ExitStack, addresses: Addresses, inbox: Inbox) -> Sample:
    cleanup.callback(db.engine().dispose)
    sample = Sample(db.engine(), name=_NAME)
    sample.prepare(inbox)
    cleanup.callback(sample.remove)
    _forget_checkpoint(addresses)
    master_cache.refresh("roles")  # as in a running application
    cleanup.callback(_forget_checkpoint, addresses)
    return sample


def _forget_checkpoint(addresses: Addresses) -> None:
    """Remove the keys of the demo's listener in Redis: its slot no longer exists."""
    for url in {addresses.broker, addresses.cache}:
        if url.startswith(("redis", "unix")):
            with redis.Redis.from_url(url) as client:
                for key in client.scan_iter(f"cdc:{_NAME}:*"):
                    client.delete(key)
