"""The steps of the scenario: plain SQL, and its effects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from demo.observer import CacheChanged, Message

if TYPE_CHECKING:
    from demo.observer import Observation

__all__ = ["STEPS", "TOKEN", "Delivery", "Effect", "Look", "Refresh", "Step"]

TOKEN: Final = "<encrypted token>"  # noqa: S105 - shown in place of a token


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that must arrive."""

    service: str
    to: str
    words: tuple[str, ...]  # that it must contain

    def is_met_by(self, observation: Observation) -> bool:
        return (
            isinstance(observation, Message)
            and (observation.service, observation.to) == (self.service, self.to)
            and all(word in observation.text for word in self.words)
        )

    def __str__(self) -> str:
        return f"a message on {self.service.capitalize()} to {self.to} with {' and '.join(map(repr, self.words))}"


@dataclass(frozen=True, slots=True)
class Refresh:
    """A key of the cache that must get a new value."""

    key: str
    word: str  # that the value must contain

    def is_met_by(self, observation: Observation) -> bool:
        return (
            isinstance(observation, CacheChanged)
            and observation.key == self.key
            and self.word in (observation.after or "")
        )

    def __str__(self) -> str:
        return f"{self.word!r} in the cache's {self.key}"


Effect = Delivery | Refresh


class Look(NamedTuple):
    """Where in the console the step can be seen."""

    path: str
    what: str


@dataclass(frozen=True, slots=True)
class Step:
    """One transaction and its effects; it sends no other messages."""

    title: str
    sql: str
    effects: tuple[Effect, ...]
    look: Look


STEPS: Final = (
    Step(
        "A colleague joins and gets a welcome message on Slack",
        """\
BEGIN;
INSERT INTO users (name, email, manager_id) VALUES ('Nora', 'nora@example.com', 1);
INSERT INTO connected_accounts (user_id, service, secret) VALUES (4, 'slack', '<encrypted token>');
COMMIT;""",
        (Delivery("slack", "nora@example.com", ("Welcome", "Nora")),),
        Look("/changes?table=connected_accounts", "the inserted row, and the task that it fired"),
    ),
    Step(
        "A ticket is inserted: its assignee gets a message on Slack, her manager on Teams",
        """\
INSERT INTO tickets (title, priority, assigned_to_id, created_by_id)
VALUES ('Printer on fire', 'High', 2, 3);""",
        (
            Delivery("slack", "anna@example.com", ("New Ticket", "TKT-00001 Printer on fire")),
            Delivery("teams", "Mona", ("Manager: New Ticket", "TKT-00001 Printer on fire")),
        ),
        Look("/changes?table=tickets", "the insert, with its values, and what it fired"),
    ),
    Step(
        "Status and priority change: the messages show the old and the new values",
        "UPDATE tickets SET status = 'in progress', priority = 'Urgent' WHERE id = 1;",
        (
            Delivery("slack", "anna@example.com", ("Ticket Updated", "open → in progress", "High → Urgent")),
            Delivery("teams", "Mona", ("Manager: Ticket Updated", "open → in progress", "High → Urgent")),
        ),
        Look(
            "/changes?table=tickets&row=1", "old and new values, and why the route of inserts fired nothing"
        ),
    ),
    Step(
        "The ticket gets another assignee",
        "UPDATE tickets SET assigned_to_id = 4 WHERE id = 1;",
        (
            Delivery("slack", "nora@example.com", ("Ticket Updated", "Anna → Nora")),
            Delivery("teams", "Mona", ("Manager: Ticket Updated", "Anna → Nora")),
        ),
        Look("/changes?table=tickets&row=1", "everything that happened to ticket 1"),
    ),
    Step(
        "A role is renamed: the cache is refreshed at once",
        "UPDATE roles SET name = 'Super Admin' WHERE name = 'Admin';",
        (Refresh("master:roles", "Super Admin"),),
        Look("/queues", "when the cache's table of roles was refreshed last"),
    ),
)
