"""Publishing tasks to the broker, together with the checkpoint."""
