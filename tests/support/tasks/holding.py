"""For a worker that holds whatever it is given until it is due, as Celery's does."""

from cdc_tasks.broker.redis import later as redis_later
from tests.support.tasks.killed import note, note_slowly

__all__ = ["note", "note_slowly"]

redis_later.HELD_FOR = 1e9  # type: ignore[misc]
redis_later.HELD_AT_MOST = 1_000_000  # type: ignore[misc]
