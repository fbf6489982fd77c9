"""What a source and a publisher promise, and what all rooms share."""
