"""MySQL and MariaDB as a source of changes: the binlog, read as a replica reads it."""
