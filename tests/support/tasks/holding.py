"""For a worker that keeps every message until it is due, as Celery's does."""

from cdc_tasks.broker.redis import later
from tests.support.tasks.killed import note, note_slowly

__all__ = ["note", "note_slowly"]

later.KEEP_SECONDS = 1e9  # type: ignore[misc]
later.KEEP_MESSAGES = 1_000_000  # type: ignore[misc]
