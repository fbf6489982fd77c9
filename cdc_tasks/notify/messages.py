"""What a message says, apart from how a service shows it; and who writes which kind of message."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from cdc_tasks.errors import CDCError

__all__ = ["Fact", "Message", "Occasion", "compose", "composes", "kinds"]


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of a message."""

    name: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Plain text throughout: each service escapes and cuts as it must."""

    heading: str  # what happened: "New Ticket"
    title: str  # to what: "TKT-00123 Fix bug"
    facts: tuple[Fact, ...] = ()
    link: str | None = None

    @property
    def text(self) -> str:
        """The whole message in one line: for lock screens, and for whoever sees no cards."""
        facts = " · ".join(f"{fact.name}: {fact.value}" for fact in self.facts)
        return f"{self.heading}: {self.title}" + (f" ({facts})" if facts else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Occasion:
    """Why somebody gets a message: ids only, for it travels as a task's arguments."""

    kind: str
    subject_id: int  # of the ticket, the user, …
    change_id: str
    changed: Mapping[str, tuple[Any, Any]] | None = None  # column: before, after; None: not known
    position: str | None = None  # of the change: messages to one account go out in this order


Composer = Callable[[Session, Occasion], Message | None]
_composers: dict[str, Composer] = {}


class UnknownKindError(CDCError):
    """No function writes this kind of message."""


def composes(*kinds: str) -> Callable[[Composer], Composer]:
    """Decorate the function that writes messages of these kinds; it returns None if the subject is gone."""

    def register(composer: Composer) -> Composer:
        _composers.update(dict.fromkeys(kinds, composer))
        return composer

    return register


def kinds() -> list[str]:
    """Return the kinds of messages that there are."""
    return sorted(_composers)


def compose(session: Session, occasion: Occasion) -> Message | None:
    """Write the message, from what the database holds now; None where its subject is gone."""
    if occasion.kind not in _composers:
        raise UnknownKindError(
            f"No function writes messages of the kind {occasion.kind!r}.",
            hint=f'decorate one with @composes("{occasion.kind}"), in a module that CDC_TASK_MODULES names',
        )
    return _composers[occasion.kind](session, occasion)
