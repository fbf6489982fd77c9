"""Positions in PostgreSQL's log, checkpoints and acknowledgements: pure, no I/O."""
