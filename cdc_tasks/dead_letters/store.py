"""Dead letters: tasks that gave up, kept in Redis until a person replays or drops them.

They are in the Redis of CACHE_URL, so they are in one place with every broker.
"""

from __future__ import annotations

import json
import traceback
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import structlog

from cdc_tasks import cache, totals
from cdc_tasks.broker.delivery_marks import came_from
from cdc_tasks.errors import CDCError, mask_secrets
from cdc_tasks.installed import current_parts
from cdc_tasks.routing.contexts import CONTEXT_HEADER
from cdc_tasks.routing.message_groups import group_headers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from celery.app.task import Context

__all__ = [
    "ATTEMPTS",
    "DeadLetter",
    "UnknownLetterError",
    "count",
    "count_by_task",
    "described_error",
    "every",
    "forget",
    "get",
    "keep",
    "letter_of",
    "with_attempt",
]

log = structlog.get_logger()

ATTEMPTS = "cdc_attempts"  # the message header with the task's earlier tries

_KEY = "cdc:dead-letters"  # a hash: task id, letter
_COUNTS = "cdc:dead-letters:by-task"  # a hash: task, number; letters are too large to read for each scrape
_LONGEST_HISTORY = 30
_LONGEST_ERROR = 1_000  # characters
_LONGEST_TRACEBACK = 20_000

# Fields that a replayed message does not keep, because it starts again.
_OF_ONE_TRY = {"expires", "retries", "task_id", "headers"}

# KEYS: the letters, the numbers, the totals; ARGV: an id, the letter, its task, the field of its total
_KEEP = f"""{totals.COUNT}
if redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) == 1 then
    redis.call('HINCRBY', KEYS[2], ARGV[3], 1)
    count(KEYS[3], ARGV[4], 1)
end
"""

# KEYS: the letters, the numbers; ARGV: an id, the letter as it was read, its task
_FORGET = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
if redis.call('HINCRBY', KEYS[2], ARGV[3], -1) <= 0 then redis.call('HDEL', KEYS[2], ARGV[3]) end
return 1
"""


class UnknownLetterError(CDCError):
    """There is no such dead letter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """One task that gave up, with everything in its message."""

    id: str
    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    queue: str | None
    error: str  # the exception's type and message
    traceback: str
    failed_at: str  # ISO 8601, UTC
    worker: str | None
    attempts: list[dict[str, Any]] = field(default_factory=list)  # before the last one: at, error, waits
    options: dict[str, Any] = field(default_factory=dict)  # for Celery's `send_task`
    group: dict[str, Any] = field(default_factory=dict)  # the headers that put it into its message group
    context: dict[str, Any] = field(default_factory=dict)  # of its transaction
    raw: str | None = None  # base64: a malformed message, unchanged


def letter_of(task: str, request: Context, error: BaseException, *, trace: str | None = None) -> DeadLetter:
    """Return the letter of a task that has just failed; secrets in the error's texts are masked."""
    shown = trace if trace is not None else "".join(traceback.format_exception(error))
    options = request.as_execution_options()
    return DeadLetter(
        id=str(request.id),
        task=task,
        args=list(request.args or ()),
        kwargs=dict(request.kwargs or {}),
        queue=came_from(request.delivery_info),
        error=described_error(error),
        traceback=mask_secrets(shown)[-_LONGEST_TRACEBACK:],
        failed_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        worker=request.hostname,
        attempts=list((request.headers or {}).get(ATTEMPTS, [])),
        group=group_headers(request.headers),
        context=dict((request.headers or {}).get(CONTEXT_HEADER) or {}),
        options={name: value for name, value in options.items() if value and name not in _OF_ONE_TRY},
    )


def described_error(error: BaseException) -> str:
    """Return the error's type and message, without secrets."""
    return mask_secrets(f"{type(error).__name__}: {error}")[:_LONGEST_ERROR]


def with_attempt(headers: Mapping[str, Any], attempt: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message's headers with one more attempt in its history."""
    return {**headers, ATTEMPTS: [*headers.get(ATTEMPTS, []), attempt][-_LONGEST_HISTORY:]}


def keep(letter: DeadLetter) -> None:
    """Store a letter; it replaces an earlier one with the same id. Raise CacheAwayError if Redis is down.

    For an app without dead letters it is only logged; the transport keeps the malformed messages of any app here.
    """
    parts = current_parts()
    if parts is not None and not parts.dead_letters:
        log.error(
            "task_dropped", of_task=letter.task, task_id=letter.id, error=letter.error.partition(":")[0]
        )
        return
    _run(_KEEP, letter)
    log.error(
        "task_gave_up",
        dead_letter=letter.id,
        of_task=letter.task,
        error=letter.error.partition(":")[0],
        tries=len(letter.attempts) + 1,
        hint=f"python -m cdc_tasks dead-letters show {letter.id}",
    )


def get(letter_id: str) -> DeadLetter:
    """Return one letter; raise UnknownLetterError if there is none with this id."""
    with cache.errors_translated():
        found = cache.client().hget(_KEY, letter_id)
    if found is None:
        raise UnknownLetterError(
            f"There is no dead letter {letter_id}.", hint="python -m cdc_tasks dead-letters list"
        )
    return DeadLetter(**json.loads(found))


def every() -> Iterator[DeadLetter]:
    """Yield all letters, in no particular order."""
    with cache.errors_translated():
        for _, found in cache.client().hscan_iter(_KEY, count=500):
            yield DeadLetter(**json.loads(found))


def count() -> int:
    """Return the number of letters."""
    with cache.errors_translated():
        return int(cache.client().hlen(_KEY))


def count_by_task() -> dict[str, int]:
    """Return the number of letters of each task; raise CacheAwayError if Redis is down."""
    with cache.errors_translated():
        found: dict[Any, Any] = cache.client().hgetall(_COUNTS)
    return {task.decode(): int(number) for task, number in found.items()}


def forget(letter: DeadLetter) -> bool:
    """Remove a letter, unless the task has failed again meanwhile; return whether it was removed."""
    return bool(_run(_FORGET, letter))


def _run(script: str, letter: DeadLetter) -> Any:
    text = json.dumps(asdict(letter), default=str)
    with cache.errors_translated():
        return cache.client().register_script(script)(
            keys=[_KEY, _COUNTS, totals.TOTALS],
            args=[letter.id, text, letter.task, totals.field("given_up", letter.task)],
        )
