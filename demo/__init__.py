"""The whole system on one machine: real servers, a worker, Flower, the listener and a live scenario."""
