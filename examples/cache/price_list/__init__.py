"""Prices in Redis, which follow the tables."""
