"""Which change fires which task: pure, no I/O. The listener and an application's routes import it."""
