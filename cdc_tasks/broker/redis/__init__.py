"""kombu's Redis transport, with its gaps closed."""
