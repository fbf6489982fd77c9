"""Sessions on PostgreSQL, and what the listener creates on the server."""
