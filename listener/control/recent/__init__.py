"""Recent changes: what came last, what it fired and why not; in Redis, bounded, and never in the queue's way."""
