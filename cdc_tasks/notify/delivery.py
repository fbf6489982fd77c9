"""One message to one connected account: a task of its own, retried on its own, sent once."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

import structlog
from celery.exceptions import SoftTimeLimitExceeded
from kombu.exceptions import OperationalError

from cdc_tasks import db
from cdc_tasks.celery import app
from cdc_tasks.errors import CDCError
from cdc_tasks.notify import accounts, preferences
from cdc_tasks.notify.delivery_log import Claim, DeliveryRecord
from cdc_tasks.notify.message import Message, Notification, compose
from cdc_tasks.notify.rate_limit import Turn
from cdc_tasks.notify.send_errors import AnswerLostError, NotSentError, RateLimitedError
from cdc_tasks.notify.services import adapter_for, rate_of
from cdc_tasks.retry import NotYetError, TryAgain, may_try_again, seconds_without_spread
from cdc_tasks.settings import worker_settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.orm import Session

__all__ = ["deliver", "notify_users"]

log = structlog.get_logger()


class BrokerAwayError(TryAgain):
    """The broker did not take a task."""


class MaybeSentError(CDCError):
    """The answer to an earlier attempt was lost, and CDC_LOST_ANSWER=give-up says not to send again."""


@app.task(name="cdc_tasks.deliver")
def deliver(  # noqa: PLR0917  # a task's arguments come by name
    account_id: int,
    kind: str,
    subject_id: int,
    change_id: str,
    changed: dict[str, list[Any]] | None = None,
    position: str | None = None,
) -> str:
    """Send one message to one account, unless it was sent before; what it says is read from the database."""
    pairs = None if changed is None else {column: (old, new) for column, (old, new) in changed.items()}
    notification = Notification(
        kind=kind, subject_id=subject_id, change_id=change_id, changed=pairs, position=position
    )
    turn = _turn(notification, account_id)
    with db.session() as session:
        account = accounts.load(session, account_id)
        message = compose(session, notification)
        quiet = (
            preferences.of_user(session, account.user_id).quiet_seconds(datetime.now(UTC)) if account else 0
        )
    if account is None or message is None:
        turn.leave()
        return _nothing_sent(
            notification, account_id, "the account is gone" if account is None else "its subject is gone"
        )
    if quiet:
        turn.comes_back(quiet)
        raise NotYetError("These are the user's quiet hours.", after=quiet)
    if not _send_in_turn(account, message, turn):
        return _nothing_sent(notification, account_id, "it was sent before")
    log.info("message_sent", kind=kind, subject_id=subject_id, account_id=account_id, service=account.service)
    return f"sent to {account.service}"


def notify_users(session: Session, user_ids: Iterable[int], notification: Notification) -> int:
    """Queue a message to every account of these users, and return how many; raises BrokerAwayError."""
    count = 0
    for user_id in user_ids:
        if (
            unwanted := preferences.of_user(session, user_id).reason_not_to_send(notification.kind)
        ) is not None:
            _nothing_sent(notification, None, unwanted, user_id=user_id)
            continue
        account_ids = accounts.ids_for_user(session, user_id)
        if not account_ids:
            _nothing_sent(notification, None, "the user has no connected account", user_id=user_id)
        for account_id in account_ids:
            _queue(notification, account_id)
        count += len(account_ids)
    return count


def _queue(notification: Notification, account_id: int) -> None:
    turn = _turn(notification, account_id)
    turn.expect()
    try:
        deliver.apply_async(
            kwargs={
                "account_id": account_id,
                "kind": notification.kind,
                "subject_id": notification.subject_id,
                "change_id": notification.change_id,
                "changed": notification.changed,
                "position": notification.position,
            },
            task_id=turn.delivery_id,
        )
    except OperationalError as error:
        raise BrokerAwayError(f"The broker did not take a task: {error}") from error


def _turn(notification: Notification, account_id: int) -> Turn:
    """Make it with the same id whenever the same change leads to the same message to the same account."""
    name = f"cdc_tasks:{notification.change_id}:{notification.kind}:{account_id}"
    return Turn(
        lane=f"account:{account_id}",
        position=notification.position,
        delivery_id=str(uuid5(NAMESPACE_URL, name)),
    )


def _send_in_turn(account: accounts.Account, message: Message, turn: Turn) -> bool:
    """Send, or tell that it was sent before; raises NotYetError, and what `_send_once` raises."""
    record = DeliveryRecord(turn.delivery_id)
    if not record.is_sent():
        turn.take(account, rate_of(account.service))
    try:
        is_sent = _send_once(account, message, record)
    except TryAgain as error:
        if may_try_again(error, deliver.request, deliver.max_retries):
            wait = seconds_without_spread(error, deliver.request.retries)
            turn.comes_back(wait, hold_up=account if isinstance(error, RateLimitedError) else None)
        else:
            turn.leave()
        raise
    except Exception:  # whatever an adapter raises, it gives up, and those behind it go on
        turn.leave()
        raise
    turn.leave()
    return is_sent


def _send_once(account: accounts.Account, message: Message, record: DeliveryRecord) -> bool:
    """Send, or tell that it was sent before; raises what the adapter raises, and MaybeSentError."""
    adapter = adapter_for(account.service)
    claim = record.claim()
    if claim is Claim.SENT:
        return False
    if claim is Claim.UNKNOWN and worker_settings().cdc_lost_answer == "give-up":
        record.unknown()
        raise MaybeSentError
    record.confirm()
    try:
        adapter.send(account.recipient, message)
    except NotSentError:
        record.not_sent()
        raise
    except SoftTimeLimitExceeded as error:
        record.unknown()
        raise AnswerLostError("The service was still not done when the task's time was over.") from error
    except BaseException:
        record.unknown()
        raise
    record.sent()
    return True


def _nothing_sent(notification: Notification, account_id: int | None, reason: str, **more: Any) -> str:
    log.info(
        "nothing_sent",
        reason=reason,
        kind=notification.kind,
        subject_id=notification.subject_id,
        account_id=account_id,
        **more,
    )
    return f"nothing sent: {reason}"
