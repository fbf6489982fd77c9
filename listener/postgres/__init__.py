"""PostgreSQL: logical replication from a slot, decoded into changes."""
