"""Orders, and what happens when they change."""
