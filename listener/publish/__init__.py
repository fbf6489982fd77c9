"""Handing tasks to the broker, together with the checkpoint."""
