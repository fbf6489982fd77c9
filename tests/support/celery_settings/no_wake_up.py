"""For a worker whose waits do not end by themselves within a test, but only with a message."""

from cdc_tasks.broker.redis import wake_up
from tests.support.tasks.killed import note, note_slowly

__all__ = ["note", "note_slowly"]

wake_up.seconds_to_wait = lambda _lease: 600
wake_up._LOOK_EVERY = 600.0  # type: ignore[misc]
