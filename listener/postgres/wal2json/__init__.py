"""wal2json's messages to changes, with the catalogue lookups that they need."""
