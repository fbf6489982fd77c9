"""The tables that the routes select: which they were, which they are, and whether changes are missing."""
