"""MariaDB and MySQL for tests: those of the demo."""

from __future__ import annotations

from demo.mysql_servers import MariaDBServer, MySQLServer

__all__ = ["MariaDBServer", "MySQLServer"]
