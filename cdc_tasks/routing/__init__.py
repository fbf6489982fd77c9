"""Which change fires which task: pure, no I/O. The listener uses it; an application needs no more of us."""
