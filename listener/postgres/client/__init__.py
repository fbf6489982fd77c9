"""Sessions on PostgreSQL, their errors, and the replication slot."""
