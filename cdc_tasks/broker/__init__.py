"""What a worker and its broker agree on: unacknowledged messages, liveness, wake-up, delays, clocks."""
