"""Redis and Valkey: a batch and its checkpoint in one atomic step."""
