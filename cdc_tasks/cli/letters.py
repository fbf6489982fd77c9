"""Replaying and dropping dead letters, for the commands and the console."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cdc_tasks.broker.delivery_marks import REPLAYED_HEADER
from cdc_tasks.broker.message_groups import groups_of
from cdc_tasks.broker.queues import queue_of_key
from cdc_tasks.dead_letters import store as dead_letters
from cdc_tasks.dead_letters.store import ATTEMPTS
from cdc_tasks.routing.contexts import CONTEXT_HEADER
from cdc_tasks.routing.message_groups import HOLD_HEADER, KEY_HEADER
from cdc_tasks.worker.redacted_args import redacted

if TYPE_CHECKING:
    from celery import Celery

    from cdc_tasks.dead_letters.store import DeadLetter

__all__ = ["drop_letter", "replay_letter"]


def replay_letter(app: Celery, letter: DeadLetter) -> tuple[bool, str]:
    """Send the task again with the same id; return whether that was possible, and what happened."""
    if letter.raw is not None:
        return False, "not sent, as it is not a task message: show it, and drop it"
    _send(app, letter)
    # After sending: a crash in between sends it twice with the same id, but loses nothing.
    dead_letters.forget(letter)
    return True, f"sent to {letter.task}"


def drop_letter(app: Celery, letter: DeadLetter) -> str:
    """Delete it, and let a message group that waits for it continue; return what happened."""
    if not dead_letters.forget(letter):
        return "kept, as it has failed again"
    if letter.group.get(HOLD_HEADER):
        with groups_of(app) as groups:
            groups.let_go(letter.group[KEY_HEADER], letter.id)
    return "dropped"


def _send(app: Any, letter: DeadLetter) -> None:
    queue = queue_of_key(app, letter.queue)
    where = {} if queue is None else {"queue": queue}
    now = _now()
    context = {CONTEXT_HEADER: letter.context} if letter.context else {}
    failed = {"at": letter.failed_at, "error": letter.error, "replayed": now}
    app.send_task(
        letter.task,
        args=letter.args,
        kwargs=letter.kwargs,
        task_id=letter.id,
        argsrepr=redacted(letter.args),
        kwargsrepr=redacted(letter.kwargs),
        headers={**letter.group, **context, ATTEMPTS: [*letter.attempts, failed], REPLAYED_HEADER: now},
        **where,
        **letter.options,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
