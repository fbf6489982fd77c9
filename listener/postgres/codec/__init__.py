"""Bytes of pgoutput, rows and values to changes: pure, no I/O."""
