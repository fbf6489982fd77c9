"""For a worker whose doorbells do not answer by themselves within a test: only a message makes one ring."""

from cdc_tasks.broker.redis import wake_up as redis_doorbells
from tests.support.tasks.killed import note, note_slowly

__all__ = ["note", "note_slowly"]

redis_doorbells.seconds_to_wait = lambda _lease: 600
redis_doorbells._LOOK_EVERY = 600.0  # type: ignore[misc]
