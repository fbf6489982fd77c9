"""The tables that the routes select: before and now, and whether changes are missing."""
