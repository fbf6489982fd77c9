"""Positions in PostgreSQL's log: pure, no I/O."""
