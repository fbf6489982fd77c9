"""The servers and the rows that everything is measured with: what all databases have in common."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import ExitStack
from typing import Self

import redis

from benchmarks.routes import QUEUE
from demo.servers import ValkeyServer
from tests.acceptance.listener_process import ListenerProcess

__all__ = ["DESCRIPTION", "TITLE", "Stage"]

TITLE = "Fix the bug in the frobnicator"
DESCRIPTION = "some longer description text here, with sixty characters or so....."


class Stage(ABC):
    """A database, and a Valkey without a file."""

    routes = "every_row"

    def __init__(self) -> None:
        self.valkey = ValkeyServer()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.valkey)
            self.broker = stack.enter_context(redis.Redis.from_url(self.valkey.url))
            self._open(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    @abstractmethod
    def url(self) -> str:
        """The database, as DATABASE_URL has it."""

    @property
    @abstractmethod
    def version(self) -> str:
        """The database server's."""

    @abstractmethod
    def _open(self, stack: ExitStack) -> None:
        """Start the database and make the tables."""

    @abstractmethod
    def fill(self, table: str, rows: int, *, transaction: int) -> None:
        """Insert so many rows, so many in each transaction."""

    def queued(self) -> int:
        """Return how many tasks wait in the queue."""
        return int(self.broker.llen(QUEUE))

    def wait_until_quiet(self) -> None:
        """Wait until no more tasks come: there are some, and as many as a second ago."""
        before, now = 0, self.queued()
        while not now or now != before:
            time.sleep(1)
            before, now = now, self.queued()

    def listener(self, routes: str = "", **more: str) -> ListenerProcess:
        """Start our listener."""
        environment = {
            "DATABASE_URL": self.url,
            "CELERY_BROKER_URL": self.valkey.url,
            "CACHE_URL": self.valkey.url_of(1),
            "CDC_NAME": "ours",
            "CDC_ROUTES": f"benchmarks.routes:{routes or self.routes}",
            **more,
        }
        return ListenerProcess(environment)
