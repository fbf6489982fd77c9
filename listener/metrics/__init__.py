"""Metrics and probes: the loop's counters, data from the servers, and the pages that show them."""
