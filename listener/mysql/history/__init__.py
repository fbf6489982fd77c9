"""The binlog as a history: changes that were committed before, read once more."""
