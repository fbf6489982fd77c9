"""Recent changes: the last ones, what they fired or why not; in Redis, bounded, and never blocking the queue."""
