"""The owners of accounts, for people who read the record of messages: one query that uses an index."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select

from cdc_tasks import db
from cdc_tasks.notify import preferences
from cdc_tasks.notify.models import ConnectedAccount, NotificationPreferences, User

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

__all__ = ["AccountOf", "Owner", "accounts_of", "owners_of"]

_MOST: Final = 1_000  # accounts


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountOf:
    """An account, without its address and secret."""

    id: int
    service: str
    is_active: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A user with preferences and accounts."""

    id: int
    name: str
    email: str
    muted_kinds: tuple[str, ...]
    manager_copies: bool
    quiet_until: datetime | None  # the end of the current quiet hours; None: there are none now
    accounts: tuple[AccountOf, ...]


def owners_of(account_ids: Collection[int]) -> dict[int, Owner]:
    """Return the owners of these accounts, if they exist. Raises DatabaseAwayError, DatabaseRefusedError."""
    if not account_ids:
        return {}
    found = _owners(ConnectedAccount.id.in_(sorted(account_ids)[:_MOST]))
    return {account.id: owner for owner in found for account in owner.accounts}


def accounts_of(person: str) -> Owner | None:
    """Return the user with this e-mail address or number; raises what `owners_of` raises."""
    condition = User.id == int(person) if person.isdecimal() and len(person) < 19 else User.email == person
    return next(iter(_owners(condition)), None)


def _owners(condition: Any) -> list[Owner]:
    query = (
        select(
            *(User.id, User.name, User.email),
            *(ConnectedAccount.id, ConnectedAccount.service, ConnectedAccount.is_active),
            NotificationPreferences,
        )
        .select_from(User)
        .outerjoin(ConnectedAccount, ConnectedAccount.user_id == User.id)
        .outerjoin(NotificationPreferences, NotificationPreferences.user_id == User.id)
        .where(condition)
        .order_by(User.id, ConnectedAccount.id)
        .limit(_MOST)
    )
    with db.reading() as session:
        return list(_grouped(session.execute(query)))


def _grouped(rows: Iterable[Any]) -> Iterable[Owner]:
    by_user: dict[int, list[Any]] = {}
    for row in rows:
        by_user.setdefault(row[0], []).append(row)
    for each in by_user.values():
        number, name, email, *_, chosen = each[0]
        wanted, now = preferences.of_row(chosen), datetime.now(UTC)
        quiet = wanted.quiet_seconds(now)
        yield Owner(
            id=number,
            name=name,
            email=email,
            muted_kinds=tuple(sorted(wanted.muted_kinds)),
            manager_copies=wanted.manager_copies,
            quiet_until=now + timedelta(seconds=quiet) if quiet else None,
            accounts=tuple(
                AccountOf(id=row[3], service=row[4], is_active=row[5]) for row in each if row[3] is not None
            ),
        )
