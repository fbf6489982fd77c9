"""From tickets to messages: many tickets inserted in one statement, with a message to three people for each."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypedDict

from cryptography.fernet import Fernet

from benchmarks.postgres_stage import PostgresStage
from benchmarks.readings import group_cpu_seconds
from benchmarks.slack_stub import Post, read_posts, slack_stub
from cdc_tasks.helpdesk.schema import sql
from harness.listener_process import ListenerProcess
from harness.waiting import wait_until
from harness.worker import Worker

__all__ = ["PEOPLE", "HelpDeskStage", "Notified", "lines_in", "notify", "worker_environment"]

PEOPLE = ("Vera", "Mona", "Anna")  # Vera manages Mona, who manages Anna
_RETRY = "Retry in "  # in the log line of a task that is retried


class Notified(TypedDict):
    """The messages of one worker with two processes, without a rate limit."""

    messages: int
    seconds: float  # from the first to the last
    per_second: float
    cpu: float  # milliseconds of the worker's processes for a message
    retries: int
    out_of_order: int


def notify(tickets: int, say: Callable[[str], None]) -> Notified:
    """Insert the tickets in one statement, and wait until every message has arrived."""
    with TemporaryDirectory() as directory, HelpDeskStage() as stage:
        posts = Path(directory) / "posts"
        key = Fernet.generate_key()
        stage.connect_people(Fernet(key))
        with slack_stub(posts) as slack:
            environment = {**worker_environment(stage, key, slack), "CDC_RATES": "slack=0:0"}
            with (
                Worker(environment) as worker,
                ListenerProcess({**environment, "CDC_NAME": "notified"}) as listener,
            ):
                listener.wait_for("streaming")
                cpu = group_cpu_seconds(worker.process.pid)
                stage.insert(tickets)
                number = tickets * len(PEOPLE)
                wait_until(
                    lambda: lines_in(posts) >= number, timeout=900, what=f"{number} messages", every=0.2
                )
                cpu = (group_cpu_seconds(worker.process.pid) - cpu) * 1000 / number
                retries = worker.log.count(_RETRY)
                listener.stop()
        result = _result(read_posts(posts), cpu, retries)
    say(f"tickets to messages: {result}")
    return result


class HelpDeskStage(PostgresStage):
    """The help desk's tables, and three people with a Slack account each."""

    def _create_tables(self) -> None:
        self.run(sql("postgresql"))

    def connect_people(self, vault: Fernet) -> None:
        for number, name in enumerate(PEOPLE):
            manager = number or None
            self.run(
                "INSERT INTO users (name, email, manager_id) VALUES (%s, %s, %s)",
                name,
                f"{name}@example.com",
                manager,
            )
            self.run(
                "INSERT INTO connected_accounts (user_id, service, address, secret) VALUES (%s, 'slack', %s, %s)",
                number + 1,
                f"C0{name}",
                vault.encrypt(b"xoxb-token").decode(),
            )

    def insert(self, tickets: int) -> None:
        self.run(
            "INSERT INTO tickets (title, assigned_to_id, created_by_id) "
            "SELECT 'Ticket ' || n, %s, 1 FROM generate_series(1, %s) AS n",
            len(PEOPLE),
            tickets,
        )


def worker_environment(stage: HelpDeskStage, key: bytes, slack: str) -> dict[str, str]:
    """Return the environment of the help desk's worker and listener; `slack` is the URL of the Web API."""
    return {
        "DATABASE_URL": stage.url,
        "CELERY_BROKER_URL": stage.valkey.url,
        "CACHE_URL": stage.valkey.url_of(1),
        "CDC_SECRET_KEY": key.decode(),
        "SLACK_API_URL": slack,
    }


def lines_in(posts: Path) -> int:
    """Return how many messages the stand-in for Slack has received."""
    return posts.read_bytes().count(b"\n") if posts.exists() else 0


def _result(posts: Sequence[Post], cpu: float, retries: int) -> Notified:
    seconds = posts[-1].at - posts[0].at
    return {
        "messages": len(posts),
        "seconds": round(seconds, 1),
        "per_second": round(len(posts) / seconds, 1),
        "cpu": round(cpu, 2),
        "retries": retries,
        "out_of_order": sum(_out_of_order(posts, f"C0{name}") for name in PEOPLE),
    }


def _out_of_order(posts: Sequence[Post], channel: str) -> int:
    """Return how many messages to this account follow one of a later ticket."""
    numbers = [
        int(found[1]) for post in posts if post.channel == channel and (found := _TICKET.search(post.text))
    ]
    return sum(later < earlier for earlier, later in pairwise(numbers))


_TICKET = re.compile(r"TKT-(\d+)")
