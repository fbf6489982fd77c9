"""For a worker whose doorbells do not answer by themselves within a test: only a message makes one ring."""

from cdc_tasks.broker.redis import wake_up as redis_doorbells
from tests.support.killed_tasks import note, note_slowly

__all__ = ["note", "note_slowly"]

redis_doorbells._WAIT = 600  # type: ignore[misc]
redis_doorbells.LOOK_EVERY = 600.0  # type: ignore[misc]
