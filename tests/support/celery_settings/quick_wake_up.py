"""For a worker whose waits end after a second."""

from cdc_tasks.broker.redis import wake_up
from tests.support.tasks.killed import note

__all__ = ["note"]

wake_up._MAX_WAIT = 1  # type: ignore[misc]
