"""For a worker whose doorbells answer every second."""

from cdc_tasks import redis_doorbells
from tests.killed_tasks import note

__all__ = ["note"]

redis_doorbells._LONGEST_WAIT = 1  # type: ignore[misc]
