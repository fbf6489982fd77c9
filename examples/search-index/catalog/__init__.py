"""A search index that follows a table of products."""
