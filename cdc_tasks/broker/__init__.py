"""A worker's use of its broker: unacknowledged messages, liveness, wake-up, delays, clocks, queues."""
