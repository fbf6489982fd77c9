"""GTIDs and positions in the binlog: pure, no I/O."""
