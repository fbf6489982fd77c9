"""kombu's Redis transport with leases, wake-up, delayed messages and few connections."""
