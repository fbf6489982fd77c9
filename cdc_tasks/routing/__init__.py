"""Which change fires which task: pure, no I/O. The listener uses it, and an application's routes import it."""
