"""A person at a shell, who types the listener's commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.waiting import at_most
from tests.support.warm_python import WARM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Broker, Database
    from tests.support.mysql.source import MySQLDatabase

__all__ = ["ROUTES", "Operator", "operator_on", "tasks_in"]

ROUTES = "tests.support.routes.for_commands"
_CHECKOUT = Path(__file__).resolve().parents[2]


class Operator:
    """A person at a shell."""

    def __init__(self, **environment: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CDC_", "CELERY_"))}
        self.environment = {**kept, **environment}

    def types(
        self, *arguments: str, module: str = "listener", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `python -m listener …`, or another module, and return its output and status."""
        return WARM.run(
            [sys.executable, "-W", "error::ResourceWarning", "-m", module, *arguments],
            cwd=_CHECKOUT,
            env={**self.environment, **environment},
            timeout=at_most(60),
        )

    def asks(self, *arguments: str, **environment: str) -> Any:
        """Return the JSON output of a command."""
        done = self.types(*arguments, "--json", **environment)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    @contextmanager
    def running(self, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """Run it in the background; kill it at the end if it is still running."""
        with subprocess.Popen(
            [sys.executable, "-m", "listener", *arguments],
            cwd=_CHECKOUT,
            env={**self.environment, **environment},
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()


def operator_on(database: Database | MySQLDatabase, broker: Broker) -> Operator:
    """Return an operator with a table, an empty broker, and a unique name."""
    database.execute("CREATE TABLE roles (id int PRIMARY KEY, name text)")
    return Operator(
        DATABASE_URL=database.url,
        CELERY_BROKER_URL=broker.url,
        CACHE_URL=broker.cache_url,
        CDC_NAME=database.name,
        CDC_ROUTES=f"{ROUTES}:setup",
    )


def tasks_in(broker: Broker, queue: str) -> list[dict[str, Any]]:
    """Return the waiting messages of a queue, oldest first."""
    return [json.loads(message) for message in reversed(broker.client.lrange(queue, 0, -1))]
