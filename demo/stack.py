"""The whole system on this machine: what is started, in which order, and how it ends."""

from __future__ import annotations

import os
import queue
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import redis

from cdc_tasks import db, master_cache
from cdc_tasks.celery import app
from cdc_tasks.notify import sealed_secrets
from demo.databases import open_database
from demo.inbox import Inbox
from demo.programs import Flower, Listener, Worker
from demo.sample import Sample
from demo.servers import ValkeyServer
from demo.witness import Sighting, Witness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from demo.databases import DatabaseKind

__all__ = ["Addresses", "Stack", "started"]

_NAME = "cdc_demo"  # CDC_NAME: not that of a listener that may run on the same servers
# Settings that the demo makes itself; the user's own are for the user's own system.
_SETTINGS = ("CDC_", "CELERY_", "FLOWER_", "SLACK_", "TEAMS_", "TICKET_", "CACHE_URL", "DATABASE_URL")


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where the servers are."""

    database: str
    broker: str
    cache: str
    sql: str  # the command that people type before a statement


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Everything, running."""

    addresses: Addresses
    sample: Sample
    inbox: Inbox
    witness: Witness
    worker: Worker
    flower: Flower
    listener: Listener

    def check(self) -> None:
        """Raise ServerError if one of the programs has ended by itself."""
        for program in (self.listener, self.worker, self.flower):
            program.check()

    def sightings(self, *, patience: float) -> Iterator[Sighting]:
        """Yield what is seen, for so many seconds; raises ServerError if a program ends by itself."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if (sighting := self.witness.next(0.2)) is not None:
                yield sighting
            else:
                self.check()

    @property
    def last_words(self) -> str:
        """The ends of the logs, for people who ask why."""
        return "\n  ".join(program.last_words for program in (self.listener, self.worker))


@contextmanager
def started(say: Callable[[str], None], kind: DatabaseKind | None = None) -> Iterator[Stack]:
    """Start it all and, at the end, stop it in the opposite order; `say` is told what is started.

    Servers that the environment names are used, the others are started: a database of `kind`, else PostgreSQL.
    Call it in the main thread: what is started ends with the thread. Raises CDCError.
    """
    sightings: queue.SimpleQueue[Sighting] = queue.SimpleQueue()
    with ExitStack() as cleanup:
        addresses = _servers(cleanup, say, kind)
        inbox = cleanup.enter_context(Inbox(sightings.put))
        _become_the_only_settings(_environment(addresses, inbox))
        sample = _sample(cleanup, addresses, inbox)
        witness = cleanup.enter_context(Witness(app, addresses.cache, sightings))
        say("a worker, Flower and the listener")
        flower, worker, listener = Flower(), Worker(), Listener()
        for program in (flower, worker, listener):
            cleanup.callback(program.close)
            program.launch()
        for program in (listener, worker, flower):
            program.wait()
        yield Stack(
            addresses=addresses,
            sample=sample,
            inbox=inbox,
            witness=witness,
            worker=worker,
            flower=flower,
            listener=listener,
        )


def _servers(cleanup: ExitStack, say: Callable[[str], None], kind: DatabaseKind | None) -> Addresses:
    database = open_database(cleanup, say, kind)
    broker, cache = map(os.environ.get, ("CELERY_BROKER_URL", "CACHE_URL"))
    if not broker or not cache:
        say("Valkey")
        valkey = cleanup.enter_context(ValkeyServer())
        broker, cache = broker or valkey.url, cache or valkey.url_of(1)
    return Addresses(database=database.url, broker=broker, cache=cache, sql=database.sql)


def _environment(addresses: Addresses, inbox: Inbox) -> dict[str, str]:
    no_proxy = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1"]))
    return {
        "DATABASE_URL": addresses.database,
        "CELERY_BROKER_URL": addresses.broker,
        "CACHE_URL": addresses.cache,
        "CDC_NAME": _NAME,
        "CDC_SECRET_KEY": sealed_secrets.new_key(),
        "SLACK_API_URL": inbox.slack_api_url,
        "CDC_RATES": "slack=0:0,teams=0:0",  # the inbox is in no hurry, and those who watch are
        "TEAMS_ALLOW_LOOPBACK": "true",
        "TICKET_BASE_URL": f"{inbox.url}/tickets",
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
    }


def _become_the_only_settings(environment: Mapping[str, str]) -> None:
    """Set our own environment, which the programs inherit: the demo itself reads cache and database too."""
    for name in [name for name in os.environ if name.startswith(_SETTINGS)]:
        del os.environ[name]
    os.environ.update(environment)


def _sample(cleanup: ExitStack, addresses: Addresses, inbox: Inbox) -> Sample:
    cleanup.callback(db.engine().dispose)
    sample = Sample(db.engine(), name=_NAME)
    sample.prepare(inbox)
    cleanup.callback(sample.remove)
    _forget_checkpoint(addresses)
    master_cache.refresh("roles")  # as any application would have found it
    cleanup.callback(_forget_checkpoint, addresses)
    return sample


def _forget_checkpoint(addresses: Addresses) -> None:
    """Remove what a listener of the demo keeps in Redis: the slot that it belongs to is gone."""
    for url in {addresses.broker, addresses.cache}:
        if url.startswith(("redis", "unix")):
            with redis.Redis.from_url(url) as client:
                for key in client.scan_iter(f"cdc:{_NAME}:*"):
                    client.delete(key)
