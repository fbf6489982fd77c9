"""The binlog as a history: past changes, read again."""
