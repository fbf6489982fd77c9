"""PostgreSQL as the tests need it."""
