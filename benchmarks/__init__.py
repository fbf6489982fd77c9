"""The listener and other programs, measured in turn with the same rows on one server: `make bench`."""
