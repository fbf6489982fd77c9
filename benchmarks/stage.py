"""The servers and rows of the benchmarks: the part common to all databases."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import ExitStack
from typing import Self

import redis

from benchmarks.routes import QUEUE
from harness.embedded_servers import ValkeyServer
from harness.listener_process import ListenerProcess

__all__ = ["DESCRIPTION", "TITLE", "Stage"]

TITLE = "Fix the bug in the frobnicator"
DESCRIPTION = "some longer description text here, with sixty characters or so....."


class Stage(ABC):
    """A database, and a Valkey without persistence."""

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
        """The value for DATABASE_URL."""

    @property
    @abstractmethod
    def version(self) -> str:
        """The version of the database server."""

    @abstractmethod
    def _open(self, stack: ExitStack) -> None:
        """Start the database, and create the tables."""

    @abstractmethod
    def fill(self, table: str, rows: int, *, transaction: int) -> None:
        """Insert `rows` rows, `transaction` of them in each transaction."""

    def queued(self) -> int:
        """Return the number of tasks in the queue."""
        return int(self.broker.llen(QUEUE))

    def wait_until_quiet(self) -> None:
        """Wait until the queue is not empty and has not grown for a second."""
        before, now = 0, self.queued()
        while not now or now != before:
            time.sleep(1)
            before, now = now, self.queued()

    def listener(self, routes: str = "", **more: str) -> ListenerProcess:
        """Start the listener."""
        environment = {
            "DATABASE_URL": self.url,
            "CELERY_BROKER_URL": self.valkey.url,
            "CACHE_URL": self.valkey.url_of(1),
            "CDC_NAME": "ours",
            "CDC_ROUTES": f"benchmarks.routes:{routes or self.routes}",
            **more,
        }
        return ListenerProcess(environment)
