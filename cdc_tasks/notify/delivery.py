"""One message to one connected account: a task with its own retries; the message is sent once."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

import structlog
from celery import shared_task
from celery.exceptions import SoftTimeLimitExceeded
from kombu.exceptions import OperationalError

from cdc_tasks import db, tracing
from cdc_tasks.broker.redis.sent_together import sent_together
from cdc_tasks.cache import CacheAwayError
from cdc_tasks.dead_letters.store import ATTEMPTS
from cdc_tasks.errors import CDCError
from cdc_tasks.notify import accounts, message_record, preferences
from cdc_tasks.notify.delivery_log import Claim, DeliveryRecord
from cdc_tasks.notify.message import Message, Notification, compose
from cdc_tasks.notify.message_record import MessageNote
from cdc_tasks.notify.rate_limit import Channel
from cdc_tasks.notify.send_errors import AnswerLostError, NotSentError, RateLimitedError
from cdc_tasks.notify.services import adapter_for, rate_of
from cdc_tasks.retry import NotYetError, TryAgain, may_retry, seconds_without_jitter
from cdc_tasks.routing.message_groups import key_headers
from cdc_tasks.settings import worker_settings
from cdc_tasks.worker.base_task import RetryingTask

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy.orm import Session

__all__ = ["deliver", "notify_each", "notify_users"]

log = structlog.get_logger()


class BrokerAwayError(TryAgain):
    """The broker did not take a task."""


class MaybeSentError(CDCError):
    """The answer to an earlier attempt was lost, and CDC_LOST_ANSWER=give-up forbids another."""


@shared_task(name="cdc_tasks.deliver", base=RetryingTask)
def deliver(  # noqa: PLR0917  # the arguments are passed by name
    account_id: int,
    kind: str,
    subject_id: int,
    change_id: str,
    changed: dict[str, list[Any]] | None = None,
    position: str | None = None,
) -> str:
    """Send one message to one account, unless it was sent before; compose its text from the database."""
    pairs = None if changed is None else {column: (old, new) for column, (old, new) in changed.items()}
    notification = Notification(
        kind=kind, subject_id=subject_id, change_id=change_id, changed=pairs, position=position
    )
    with db.reading() as session:
        account = accounts.load(session, account_id)
        message = compose(session, notification)
    note = _note(notification, account_id, account)
    if account is None or message is None:
        reason = "the account is gone" if account is None else "its subject is gone"
        note.ended(message_record.NOT_SENT, reason)
        return _nothing_sent(notification, account_id, reason)
    quiet = preferences.of_row(account.preferences).quiet_seconds(datetime.now(UTC))
    if quiet:
        note.waits(quiet, message_record.QUIET_HOURS)
        raise NotYetError("The user has quiet hours now.", after=quiet)
    with _noted(note):
        was_sent = _send_once(account, message, note)
    if not was_sent:
        return _nothing_sent(notification, account_id, "it was sent before")
    log.info("message_sent", kind=kind, subject_id=subject_id, account_id=account_id, service=account.service)
    return f"sent to {account.service}"


def notify_users(session: Session, user_ids: Iterable[int], notification: Notification) -> int:
    """Queue one message for each account of these users, and return their number; raises BrokerAwayError."""
    return notify_each(session, [(user_id, notification) for user_id in user_ids])


def notify_each(session: Session, recipients: Sequence[tuple[int, Notification]]) -> int:
    """Queue one message for each account of each (user, notification); return and raise the same as `notify_users`."""
    messages = list(_messages(session, recipients))
    try:
        with sent_together():
            for account_id, notification in messages:
                _queue(notification, account_id)
    except OperationalError as error:
        raise BrokerAwayError(f"The broker did not take a task: {error}") from error
    return len(messages)


def _messages(
    session: Session, recipients: Sequence[tuple[int, Notification]]
) -> Iterator[tuple[int, Notification]]:
    """Yield each account that gets a message, with the notification."""
    if not recipients:
        return
    user_ids = [user_id for user_id, _ in recipients]
    chosen = preferences.of_users(session, user_ids)
    account_ids = accounts.ids_for_users(session, user_ids)
    for user_id, notification in recipients:
        reason = chosen[user_id].reason_not_to_send(notification.kind)
        if reason is None and user_id in account_ids:
            yield from ((account_id, notification) for account_id in account_ids[user_id])
        else:
            _nothing_sent(notification, None, reason or "the user has no connected account", user_id=user_id)


def _queue(notification: Notification, account_id: int) -> None:
    deliver.apply_async(
        kwargs={
            "account_id": account_id,
            "kind": notification.kind,
            "subject_id": notification.subject_id,
            "change_id": notification.change_id,
            "changed": notification.changed,
            "position": notification.position,
        },
        task_id=_delivery_id(notification, account_id),
        headers=key_headers("account", account_id, position=notification.position),
    )


def _delivery_id(notification: Notification, account_id: int) -> str:
    """Return an id that is always the same for one change, kind of message and account."""
    name = f"cdc_tasks:{notification.change_id}:{notification.kind}:{account_id}"
    return str(uuid5(NAMESPACE_URL, name))


def _note(notification: Notification, account_id: int, account: accounts.Account | None) -> MessageNote:
    """Return the note for the record of messages; of earlier attempts it has only the kinds of errors."""
    attempts = (deliver.request.headers or {}).get(ATTEMPTS, ())
    return MessageNote(
        id=_delivery_id(notification, account_id),
        account_id=account_id,
        kind=notification.kind,
        subject_id=notification.subject_id,
        change_id=notification.change_id,
        service="" if account is None else account.service,
        tries=[{**each, "error": str(each.get("error", "")).partition(":")[0]} for each in attempts],
    )


@contextmanager
def _noted(note: MessageNote) -> Iterator[None]:
    """Record why the message was not sent, if it was not."""
    try:
        yield
    except (
        NotYetError,
        CacheAwayError,
    ):  # the rate limit records its own waits; without Redis there is no record
        raise
    except Exception as error:
        kind = type(error).__name__
        if isinstance(error, TryAgain) and may_retry(error, deliver.request, deliver.max_retries):
            note.waits(seconds_without_jitter(error, deliver.request.retries), message_record.RETRY, kind)
        else:
            note.ended(message_record.GAVE_UP, kind)
        raise


def _send_once(account: accounts.Account, message: Message, note: MessageNote) -> bool:
    """Send the message; return False if it was sent before. Raises NotYetError, and the errors of `_send_claimed`."""
    record, channel = DeliveryRecord(note.id, note), Channel.of(account)
    claim = channel.acquire(rate_of(account.service), record)
    if claim is Claim.SENT:
        return False
    try:
        _send_claimed(account, message, record, may_be_sent=claim is Claim.UNKNOWN)
    except RateLimitedError as error:
        if may_retry(error, deliver.request, deliver.max_retries):
            channel.block(seconds_without_jitter(error, deliver.request.retries))
        raise
    record.sent(account.service)
    return True


def _send_claimed(
    account: accounts.Account, message: Message, record: DeliveryRecord, *, may_be_sent: bool
) -> None:
    """Send the message, and record it if it was not sent. Raises the adapter's errors and MaybeSentError."""
    adapter = adapter_for(account.service)
    if may_be_sent and worker_settings().cdc_lost_answer == "give-up":
        record.unknown()
        raise MaybeSentError
    record.confirm_if_old()
    try:
        with tracing.span("delivery", **{"messaging.system": account.service}):
            adapter.send(account.recipient, message)
    except NotSentError:
        record.not_sent()
        raise
    except SoftTimeLimitExceeded as error:
        record.unknown()
        raise AnswerLostError("The service had not answered when the task's time limit was over.") from error
    except BaseException:
        record.unknown()
        raise


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
