"""Connected accounts: where users receive messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import lazyload

from cdc_tasks.errors import CDCError
from cdc_tasks.notify import sealed_secrets
from cdc_tasks.notify.models import ConnectedAccount, NotificationPreferences, User
from cdc_tasks.notify.services import Recipient, adapter_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import SecretStr
    from sqlalchemy.orm import Session

__all__ = ["connect", "ids_for_users", "load", "reseal_all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An active account with its decrypted secret."""

    id: int
    user_id: int
    service: str
    recipient: Recipient
    preferences: NotificationPreferences | None = None  # the user's row, if there is one


class UnknownUserError(CDCError):
    """There is no such user."""


def ids_for_users(session: Session, user_ids: Sequence[int]) -> dict[int, list[int]]:
    """Return the active accounts of these users, oldest first; users without one are left out."""
    query = select(ConnectedAccount.user_id, ConnectedAccount.id).where(
        ConnectedAccount.user_id.in_(user_ids), ConnectedAccount.is_active.is_(True)
    )
    found: dict[int, list[int]] = {}
    for user_id, account_id in session.execute(query.order_by(ConnectedAccount.id)):
        found.setdefault(user_id, []).append(account_id)
    return found


def load(session: Session, account_id: int) -> Account | None:
    """Return the account with its decrypted secret; None if it is deleted or inactive. Raises SealedSecretError."""
    row = session.get(ConnectedAccount, account_id)
    if row is None or not row.is_active:
        return None
    secret = sealed_secrets.open_sealed(row.secret)
    recipient = Recipient(address=row.address, secret=secret, email=row.user.email)
    return Account(
        id=row.id,
        user_id=row.user_id,
        service=row.service,
        recipient=recipient,
        preferences=row.preferences,
    )


def connect(session: Session, *, email: str, service: str, address: str | None, secret: SecretStr) -> int:
    """Add an account, encrypt its secret, and return its id. Raises UnknownUserError and RefusedError."""
    user = session.scalar(select(User).where(User.email == email))
    if user is None:
        raise UnknownUserError(f"No user has the e-mail address {email}.")
    adapter_for(service).check(Recipient(address=address, secret=secret, email=email))
    account = ConnectedAccount(
        user_id=user.id, service=service, address=address, secret=sealed_secrets.seal(secret), is_active=True
    )
    session.add(account)
    session.commit()
    return account.id


def reseal_all(session: Session) -> int:
    """Encrypt every secret with the first key of CDC_SECRET_KEY; return how many. Raises SealedSecretError."""
    query = select(ConnectedAccount).options(lazyload("*")).with_for_update()
    accounts = session.scalars(query).all()
    for account in accounts:
        account.secret = sealed_secrets.reseal(account.secret)
    session.commit()
    return len(accounts)
