"""The help desk on any of the databases: schema, worker, and listener with the shipped routes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import redis
from cryptography.fernet import Fernet

from harness.embedded_servers import ValkeyServer
from harness.listener_process import ListenerProcess
from harness.waiting import wait_until
from harness.worker import Worker
from tests.support.listening import wait_for_listener
from tests.support.mysql.source import MySQLDatabase
from tests.support.social_stub import SocialStub

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Database

__all__ = ["Desk", "running_desk"]

_CHECKOUT = Path(__file__).resolve().parents[2]
_PEOPLE = (("Vera", None), ("Mona", 1), ("Anna", 2), ("Carl", None), ("Paul", 2), ("Dora", None))


@dataclass(frozen=True, kw_only=True)
class Desk:
    """Vera manages Mona, who manages Anna and Paul; Carl and Dora have no manager. Ids 1 to 6."""

    database: Database | MySQLDatabase
    environment: dict[str, str]
    social: SocialStub
    cache: redis.Redis
    programs: list[Worker | ListenerProcess] = field(default_factory=list)

    VERA, MONA, ANNA, CARL, PAUL, DORA = range(1, 7)

    def insert_ticket(self, title: str, assignee: int) -> None:
        self.database.execute(
            f"INSERT INTO tickets (title, assigned_to_id, created_by_id) VALUES ('{title}', {assignee}, {self.CARL})"
        )

    def account(self, user_id: int, service: str, secret: str, address: str | None = None) -> str:
        """Return the statement that connects an account as `connect-account` does."""
        sealed = Fernet(self.environment["CDC_SECRET_KEY"]).encrypt(secret.encode()).decode()
        place = "NULL" if address is None else f"'{address}'"
        return (
            "INSERT INTO connected_accounts (user_id, service, address, secret)"
            f" VALUES ({user_id}, '{service}', {place}, '{sealed}')"
        )

    def messages(self, words: str) -> list[tuple[str, str]]:
        """Return (account, heading) of the messages that contain these words."""
        return sorted((each.to, each.heading) for each in self.social.posted if words in each.text)

    def wait_for_messages(self, words: str, *expected: tuple[str, str]) -> None:
        wait_until(
            lambda: len(self.messages(words)) >= len(expected), timeout=30, what=f"the messages on {words}"
        )
        assert self.messages(words) == sorted(expected)

    def wait_for_cache(self, key: str, names: list[str]) -> None:
        def cached() -> bool:
            rows = json.loads(self.cache.get(f"master:{key}") or "[]")
            return [row["name"] for row in rows] == names

        wait_until(cached, timeout=20, what=f"master:{key} to be {names}")

    def run_command(self, *arguments: str, secret: str = "") -> subprocess.CompletedProcess[str]:
        """Run `python -m cdc_tasks …`."""
        return subprocess.run(
            [sys.executable, "-m", "cdc_tasks", *arguments],
            cwd=_CHECKOUT,
            env={**os.environ, **self.environment},
            input=f"{secret}\n",
            capture_output=True,
            text=True,
            check=False,
        )


@contextmanager
def running_desk(database: Database | MySQLDatabase, **more: str) -> Iterator[Desk]:
    """Create the tables, users and accounts, and start a worker and a listener; `more` are variables."""
    with ExitStack() as stack:
        social, valkey = stack.enter_context(SocialStub()), stack.enter_context(ValkeyServer())
        desk = Desk(
            database=database,
            environment={**_environment(database, valkey, social), **more},
            social=social,
            cache=stack.enter_context(redis.Redis.from_url(valkey.url_of(1))),
        )
        _fill(desk)
        for program in (Worker, ListenerProcess):
            desk.programs.append(stack.enter_context(program(desk.environment)))
        wait_for_listener(database, timeout=30)
        yield desk


def _environment(
    database: Database | MySQLDatabase, valkey: ValkeyServer, social: SocialStub
) -> dict[str, str]:
    return {
        "DATABASE_URL": database.url,
        "CELERY_BROKER_URL": valkey.url,
        "CACHE_URL": valkey.url_of(1),
        "CDC_NAME": database.name,
        "CDC_SECRET_KEY": Fernet.generate_key().decode(),
        "SLACK_API_URL": social.slack_api_url,
        "TEAMS_ALLOW_LOOPBACK": "true",
        "CDC_RATES": "slack=0:0,teams=0:0",  # no limits
    }


def _fill(desk: Desk) -> None:
    made = desk.run_command("create-schema")
    assert made.returncode == 0, made.stderr
    for name, manager in _PEOPLE:
        desk.database.execute(
            f"INSERT INTO users (name, email, manager_id)"
            f" VALUES ('{name}', '{name.lower()}@example.com', {manager or 'NULL'})"
        )
    for statement in (
        desk.account(desk.ANNA, "slack", "xoxb-good", "C0ANNA"),
        desk.account(desk.ANNA, "teams", desk.social.teams_url("anna")),
        desk.account(desk.MONA, "slack", "xoxb-good", "C0MONA"),
        desk.account(desk.VERA, "teams", desk.social.teams_url("vera")),
        desk.account(desk.PAUL, "slack", "xoxb-good", "C0PAUL"),
        desk.account(desk.DORA, "slack", "xoxb-good", "C0DORA"),
    ):
        desk.database.execute(statement)
