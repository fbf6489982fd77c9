"""What the scenario consists of: plain SQL, and what has to come of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from demo.witness import CacheChanged, Message

if TYPE_CHECKING:
    from demo.witness import Sighting

__all__ = ["STEPS", "TOKEN", "Delivery", "Effect", "Refresh", "Step"]

TOKEN: Final = "<encrypted token>"  # noqa: S105 - what is shown in a token's place


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that has to come."""

    service: str
    to: str
    words: tuple[str, ...]  # that it has to have in it

    def is_met_by(self, sighting: Sighting) -> bool:
        return (
            isinstance(sighting, Message)
            and (sighting.service, sighting.to) == (self.service, self.to)
            and all(word in sighting.text for word in self.words)
        )

    def __str__(self) -> str:
        return f"a message on {self.service.capitalize()} to {self.to} with {' and '.join(map(repr, self.words))}"


@dataclass(frozen=True, slots=True)
class Refresh:
    """A key of the cache that has to get a new value."""

    key: str
    word: str  # that has to be in it

    def is_met_by(self, sighting: Sighting) -> bool:
        return (
            isinstance(sighting, CacheChanged)
            and sighting.key == self.key
            and self.word in (sighting.after or "")
        )

    def __str__(self) -> str:
        return f"{self.word!r} in the cache's {self.key}"


Effect = Delivery | Refresh


@dataclass(frozen=True, slots=True)
class Step:
    """One transaction and its effects: these, and no message besides."""

    title: str
    sql: str
    effects: tuple[Effect, ...]


STEPS: Final = (
    Step(
        "A colleague joins: she is welcomed on Slack",
        """\
BEGIN;
INSERT INTO users (name, email, manager_id) VALUES ('Nora', 'nora@example.com', 1);
INSERT INTO connected_accounts (user_id, service, secret) VALUES (4, 'slack', '<encrypted token>');
COMMIT;""",
        (Delivery("slack", "nora@example.com", ("Welcome", "Nora")),),
    ),
    Step(
        "A ticket is inserted: its assignee hears of it on Slack, her manager on Teams",
        """\
INSERT INTO tickets (title, priority, assigned_to_id, created_by_id)
VALUES ('Printer on fire', 'High', 2, 3);""",
        (
            Delivery("slack", "anna@example.com", ("New Ticket", "TKT-00001 Printer on fire")),
            Delivery("teams", "Mona", ("Manager: New Ticket", "TKT-00001 Printer on fire")),
        ),
    ),
    Step(
        "Status and priority change: the message says from what to what",
        "UPDATE tickets SET status = 'in progress', priority = 'Urgent' WHERE id = 1;",
        (
            Delivery("slack", "anna@example.com", ("Ticket Updated", "open → in progress", "High → Urgent")),
            Delivery("teams", "Mona", ("Manager: Ticket Updated", "open → in progress", "High → Urgent")),
        ),
    ),
    Step(
        "The ticket is handed over",
        "UPDATE tickets SET assigned_to_id = 4 WHERE id = 1;",
        (
            Delivery("slack", "nora@example.com", ("Ticket Updated", "Anna → Nora")),
            Delivery("teams", "Mona", ("Manager: Ticket Updated", "Anna → Nora")),
        ),
    ),
    Step(
        "A role is renamed: the cache has it at once",
        "UPDATE roles SET name = 'Super Admin' WHERE name = 'Admin';",
        (Refresh("master:roles", "Super Admin"),),
    ),
)
