"""Reads the existing rows in chunks, and finds the position of each chunk in the log."""
