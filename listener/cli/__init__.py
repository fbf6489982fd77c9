"""The commands of `python -m listener`, and what they print."""
