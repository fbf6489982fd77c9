"""Bytes of the binlog to changes: pure, no I/O."""
