"""The listener as a whole: settings, wiring, loop, status, lag alarm."""
