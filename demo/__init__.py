"""The whole system on one machine: real servers, a worker, Flower, the listener, a live scenario."""
