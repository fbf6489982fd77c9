"""A help desk for tests: its tables, users and accounts, and a worker's environment."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from celery import Celery
from cryptography.fernet import Fernet

from cdc_tasks.changes import EventType, RowChange
from cdc_tasks.helpdesk.schema import sql
from cdc_tasks.routing.message_groups import key_headers

if TYPE_CHECKING:
    from tests.conftest import Broker, Database
    from tests.support.social_stub import SocialStub

_positions = itertools.count(1)


@dataclass(frozen=True, kw_only=True)
class HelpDesk:
    """Vera manages Mona, who manages Anna; Carl has no manager. Ids 1, 2, 3, 4."""

    database: Database
    broker: Broker
    social: SocialStub
    key: str

    VERA, MONA, ANNA, CARL = 1, 2, 3, 4

    @classmethod
    def open(cls, database: Database, broker: Broker, social: SocialStub) -> HelpDesk:
        database.execute(sql("postgresql"))
        people = [("Vera", None), ("Mona", 1), ("Anna", 2), ("Carl", None)]
        for name, manager in people:
            database.execute(
                "INSERT INTO users (name, email, manager_id) VALUES (%s, %s, %s)",
                name,
                f"{name.lower()}@example.com",
                manager,
            )
        return cls(database=database, broker=broker, social=social, key=Fernet.generate_key().decode())

    @property
    def environment(self) -> dict[str, str]:
        return {
            "DATABASE_URL": self.database.url,
            "CELERY_BROKER_URL": self.broker.url,
            "CACHE_URL": self.broker.cache_url,
            "CDC_SECRET_KEY": self.key,
            "SLACK_API_URL": self.social.slack_api_url,
            "TEAMS_ALLOW_LOOPBACK": "true",
            "CDC_RATES": "slack=0:0,teams=0:0",  # no limits
            "TICKET_BASE_URL": "https://helpdesk.example.com/tickets",
        }

    def connect_slack(self, user_id: int, address: str | None, token: str = "xoxb-good") -> int:
        return self._connect(user_id, "slack", address, token)

    def connect_teams(self, user_id: int, name: str) -> int:
        return self._connect(user_id, "teams", None, self.social.teams_url(name))

    def _connect(self, user_id: int, service: str, address: str | None, secret: str) -> int:
        sealed = Fernet(self.key).encrypt(secret.encode()).decode()
        [(account_id,)] = self.database.fetch(
            "INSERT INTO connected_accounts (user_id, service, address, secret)"
            " VALUES (%s, %s, %s, %s) RETURNING id",
            user_id,
            service,
            address,
            sealed,
        )
        return int(account_id)

    def insert_ticket(self, title: str = "Printer on fire", **columns: Any) -> RowChange:
        """Insert a ticket and return the change that the listener would send."""
        values = {"title": title, "created_by_id": self.CARL, **columns}
        [(row,)] = self.database.fetch(
            f"INSERT INTO tickets ({', '.join(values)}) VALUES ({', '.join(['%s'] * len(values))})"
            " RETURNING to_json(tickets)",
            *values.values(),
        )
        return change(EventType.INSERT, "tickets", after=row)

    def update_ticket(self, ticket_id: int, **columns: Any) -> RowChange:
        """Update a ticket and return the change, with the whole old row."""
        [(before,)] = self.database.fetch("SELECT to_json(tickets) FROM tickets WHERE id = %s", ticket_id)
        assignments = ", ".join(f"{column} = %s" for column in columns)
        [(after,)] = self.database.fetch(
            f"UPDATE tickets SET {assignments} WHERE id = %s RETURNING to_json(tickets)",
            *columns.values(),
            ticket_id,
        )
        return change(EventType.UPDATE, "tickets", before=before, after=after)

    def send(
        self,
        task: str,
        *arguments: Any,
        queue: str = "cdc_notifications",
        broker_url: str | None = None,
        countdown: float | None = None,
    ) -> str:
        """Send a task by name, as the listener does; tasks for a ticket have their route's key."""
        is_of_ticket = task.startswith("cdc_tasks.notify_ticket")
        headers = key_headers("tickets", arguments[0].row["id"]) if is_of_ticket else None
        plain = [each.to_message() if isinstance(each, RowChange) else each for each in arguments]
        with Celery("tests", broker=broker_url or self.broker.url, set_as_current=False) as app:
            return str(app.send_task(task, plain, queue=queue, countdown=countdown, headers=headers).id)


def change(
    event: EventType,
    table: str,
    *,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> RowChange:
    """Return a change with a unique position, and so a unique id."""
    position = f"0/{next(_positions):X}:0"
    return RowChange(
        id=f"change-{position}",
        schema="public",
        table=table,
        event=event,
        before=before,
        after=after,
        position=position,
        committed_at=datetime.now(UTC),
    )
