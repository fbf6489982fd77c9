"""Ours beside others', on one server, the same rows, in turn: `make bench`."""
