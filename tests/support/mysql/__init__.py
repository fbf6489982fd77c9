"""MySQL and MariaDB for the tests."""
