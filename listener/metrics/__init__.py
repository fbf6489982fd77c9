"""What the listener tells Prometheus and probes: what the loop counts, what servers say, and the pages that show it."""
