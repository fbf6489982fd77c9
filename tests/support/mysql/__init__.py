"""MySQL and MariaDB as the tests need them."""
