"""The content of a message, independent of the service, and the functions that compose each kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from cdc_tasks.errors import CDCError

__all__ = ["Fact", "Message", "Notification", "compose", "composes", "kinds"]


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of a message."""

    name: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A message in plain text: each service escapes and shortens it."""

    heading: str  # what happened: "New Ticket"
    title: str  # what it happened to: "TKT-00123 Fix bug"
    facts: tuple[Fact, ...] = ()
    link: str | None = None

    @property
    def text(self) -> str:
        """The whole message in one line: for lock screens, and for clients that show no cards."""
        facts = " · ".join(f"{fact.name}: {fact.value}" for fact in self.facts)
        return f"{self.heading}: {self.title}" + (f" ({facts})" if facts else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """The reason for a message. It has only ids, because it is in a task's arguments."""

    kind: str
    subject_id: int  # of the ticket, the user, …
    change_id: str
    changed: Mapping[str, tuple[Any, Any]] | None = None  # {column: (before, after)}; None: unknown
    position: str | None = None  # of the change: messages to one account are sent in this order


Composer = Callable[[Session, Notification], Message | None]
_composers: dict[str, Composer] = {}


class UnknownKindError(CDCError):
    """No function composes this kind of message."""


def composes(*kinds: str) -> Callable[[Composer], Composer]:
    """Decorate the function that composes messages of these kinds; it returns None if the subject is deleted."""

    def register(composer: Composer) -> Composer:
        _composers.update(dict.fromkeys(kinds, composer))
        return composer

    return register


def kinds() -> list[str]:
    """Return all kinds of messages."""
    return sorted(_composers)


def compose(session: Session, notification: Notification) -> Message | None:
    """Compose the message from the current rows; None if its subject is deleted."""
    if notification.kind not in _composers:
        raise UnknownKindError(
            f"No function composes messages of the kind {notification.kind!r}.",
            hint=f'decorate one with @composes("{notification.kind}"), in a module that CDC_TASK_MODULES names',
        )
    return _composers[notification.kind](session, notification)
