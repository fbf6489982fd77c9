"""What a source and a publisher promise, and what the listener's other packages share."""
