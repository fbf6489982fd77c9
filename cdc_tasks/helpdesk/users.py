"""The task for new users, its welcome message, and the chain of a user's managers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog
from celery import shared_task

from cdc_tasks import db
from cdc_tasks.changes import RowChange
from cdc_tasks.notify.delivery import notify_users
from cdc_tasks.notify.message import Fact, Message, Notification, composes
from cdc_tasks.notify.models import User
from cdc_tasks.words import counted
from cdc_tasks.worker.base_task import RetryingTask

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["get_manager_ids", "welcome_user"]

log = structlog.get_logger()


@shared_task(name="cdc_tasks.welcome_user", base=RetryingTask)
def welcome_user(change: dict[str, Any]) -> str:
    """Send a welcome to each account of a new user."""
    insert = RowChange.from_message(change)
    user_id = insert.row["id"]
    with db.reading() as session:
        if session.get(User, user_id) is None:
            log.info("nothing_sent", reason="the user is gone", user_id=user_id)
            return "nothing sent: the user is gone"
        notification = Notification(
            kind="welcome", subject_id=user_id, change_id=insert.id, position=insert.position
        )
        return f"{counted(notify_users(session, [user_id], notification), 'message')} queued"


def get_manager_ids(user_id: int, session: Session) -> list[int]:
    """Return the ids of a user's managers, up the chain: nearest first, each once, without the user's own."""
    found: list[int] = []
    manager_id = _manager_of(user_id, session)
    while manager_id is not None and manager_id != user_id and manager_id not in found:
        found.append(manager_id)
        manager_id = _manager_of(manager_id, session)
    return found


def _manager_of(user_id: int, session: Session) -> int | None:
    user = session.get(User, user_id)  # the first one is loaded with the ticket
    return None if user is None else user.manager_id


@composes("welcome")
def _welcome(session: Session, notification: Notification) -> Message | None:
    user = session.get(User, notification.subject_id)
    if user is None:
        return None
    manager = session.get(User, user.manager_id) if user.manager_id is not None else None
    facts = (Fact("Your manager", manager.name),) if manager else ()
    return Message(heading="Welcome", title=f"Good to have you here, {user.name}.", facts=facts)
