"""A store that tells others of its orders: an outbox without a table to poll."""
