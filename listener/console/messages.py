"""Who got what, by which service, after which tries, and what is held back: the workers' record of messages.

Names come from the application's database, in one query by an index for a page, with the rights that workers have.
If it has no such tables, or does not answer, the page shows the numbers of accounts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cdc_tasks.errors import CDCError
from cdc_tasks.notify import message_record
from cdc_tasks.notify.message_record import GAVE_UP, NOT_SENT, SENT, Entry, HeldBack, MessageNote
from cdc_tasks.routing.message_groups import key_of

if TYPE_CHECKING:
    from starlette.requests import Request

    from cdc_tasks.notify.people import Owner
    from listener.console.facts import Facts

__all__ = ["MessagePages", "has_messages"]

_SHOWN: Final = 100
_DELIVER: Final = "cdc_tasks.deliver"
_STATES: Final = (SENT, GAVE_UP, NOT_SENT)


class _People(NamedTuple):
    """The owners of the accounts on a page."""

    by_account: Mapping[int, Owner]
    asked: Owner | None = None  # the person of the page
    trouble: tuple[str, str | None] | None = None  # why there are no names


def has_messages(facts: Facts) -> bool:
    """Return whether the pages of messages are for this application: it is the shipped one, or has sent some."""
    return facts.is_shipped_app or bool(facts.messages_sent().value)


class MessagePages:
    """Reads the record of messages for its pages."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def shown(self, request: Request, *, may_see: bool) -> Mapping[str, Any]:
        """Return the values for the page with the list. Raise CDCError if Redis does not answer."""
        asked = {
            name: request.query_params.get(name, "").strip()
            for name in ("person", "service", "state", "behind")
        }
        person, trouble = self._person(asked["person"]) if may_see else (None, None)
        accounts = None if not (may_see and asked["person"]) else _accounts(person)
        found = message_record.ended(
            behind=asked["behind"] or None,
            accounts=accounts,
            service=asked["service"],
            state=asked["state"],
            most=_SHOWN,
        )
        held, number = message_record.held_back()
        held = [each for each in held if accounts is None or each.note.account_id in accounts]
        notes = [*(each.note for each in found.entries), *(each.note for each in held)]
        people = self._people(person, trouble, notes) if may_see else _People({})
        return {
            "asked": asked,
            "states": _STATES,
            "entries": found.entries,
            "older": found.older,
            "held": held[:_SHOWN],
            "held_number": number,
            "behind_account": self._behind(held),
            "people": people,
            "may_see": may_see,
            "has_any": bool(notes) or bool(self._facts.messages_sent().value),
            "has_task": self._facts.is_shipped_app or _DELIVER in self._facts.app.tasks,
        }

    def one(self, request: Request, *, may_see: bool) -> Mapping[str, Any]:
        """Return the values for the page of one message. Raise CDCError."""
        name = request.path_params["id"]
        entry: Entry | HeldBack | None = message_record.find(name) or message_record.find_held(name)
        if entry is None:
            raise CDCError(
                f"The record has no message {name[:100]}.",
                hint="It may have dropped it: it keeps the last CDC_MESSAGES_KEPT messages.",
                code="message_unknown",
            )
        people = self._people(None, None, [entry.note]) if may_see else _People({})
        return {
            "note": entry.note,
            "entry": entry if isinstance(entry, Entry) else None,
            "held": entry if isinstance(entry, HeldBack) else None,
            "people": people,
            "may_see": may_see,
        }

    @staticmethod
    def _person(wanted: str) -> tuple[Owner | None, tuple[str, str | None] | None]:
        if not wanted:
            return None, None
        from cdc_tasks.notify.people import accounts_of

        try:
            return accounts_of(wanted), None
        except CDCError as error:
            return None, (error.message, error.hint)

    @staticmethod
    def _people(
        person: Owner | None, trouble: tuple[str, str | None] | None, notes: Sequence[MessageNote]
    ) -> _People:
        """Return the people of a page: one query, unless the page is about one known person."""
        if person is not None:
            return _People({account.id: person for account in person.accounts}, person)
        if trouble is not None:
            return _People({}, None, trouble)
        from cdc_tasks.notify.people import owners_of

        try:
            return _People(owners_of({each.account_id for each in notes}))
        except CDCError as error:
            return _People({}, None, (error.message, error.hint))

    def _behind(self, held: Sequence[HeldBack]) -> Mapping[int, int]:
        """Return how many messages wait after a held-back one, by account: messages to an account come in order."""
        accounts = {each.note.account_id for each in held[:_SHOWN]}
        keys = {account: key_of("account", account) for account in accounts}
        waiting = self._facts.waiting_for(keys.values()) if keys else {}
        return {account: waiting.get(key, 0) for account, key in keys.items()}


def _accounts(person: Owner | None) -> set[int]:
    return set() if person is None else {account.id for account in person.accounts}
