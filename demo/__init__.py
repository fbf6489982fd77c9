"""The whole system on one machine: real servers out of wheels, a worker, Flower, the listener, a live scenario."""
