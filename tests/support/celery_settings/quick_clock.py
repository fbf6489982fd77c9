"""For a worker that reads the steady clock every second."""

from cdc_tasks.broker import clock

clock._EVERY = 1  # type: ignore[misc]
