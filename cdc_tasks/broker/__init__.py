"""How a worker uses its broker: unacknowledged messages, liveness, wake-up, delays, clocks, queues."""
