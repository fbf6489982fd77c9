"""The source PostgreSQL: reads a replication slot and decodes its messages into changes."""
