"""For a worker that looks at the steady clock every second."""

from cdc_tasks import steady_clock

steady_clock._EVERY = 1  # type: ignore[misc]
