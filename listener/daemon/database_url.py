"""Which kind of database an address names."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final
from urllib.parse import unquote, urlsplit

from cdc_tasks.errors import CDCError

__all__ = ["DatabaseType", "UnknownDatabaseTypeError", "detect_database_type", "home_schema"]

_SCHEME: Final = re.compile(r"(?P<dialect>[a-z0-9]+)(\+[a-z0-9]+)?://", re.IGNORECASE)


class DatabaseType(StrEnum):
    """A family of databases with one kind of log."""

    POSTGRESQL = "postgresql"
    MYSQL = "mysql"  # MariaDB too


class UnknownDatabaseTypeError(CDCError):
    """The address names no database that can be watched."""


_DIALECTS: Final = {
    "postgresql": DatabaseType.POSTGRESQL,
    "postgres": DatabaseType.POSTGRESQL,
    "mysql": DatabaseType.MYSQL,
    "mariadb": DatabaseType.MYSQL,
}


def detect_database_type(url: str) -> DatabaseType:
    """Tell it by the URL's scheme, SQLAlchemy's `dialect+driver://` included; raises UnknownDatabaseTypeError."""
    match = _SCHEME.match(url)
    if not match:
        raise UnknownDatabaseTypeError("no URL with a scheme such as postgresql:// or mysql://")
    dialect = match["dialect"].lower()
    if dialect not in _DIALECTS:
        raise UnknownDatabaseTypeError(
            f"{dialect}:// is no database that can be watched: postgresql://, mysql:// and mariadb:// are"
        )
    return _DIALECTS[dialect]


def home_schema(url: str) -> str:
    """Return the schema in which an application has its tables: `public`, on MySQL the database that the URL names.

    Raises UnknownDatabaseTypeError, also where a URL of MySQL names no database.
    """
    if detect_database_type(url) is DatabaseType.POSTGRESQL:
        return "public"
    database = unquote(urlsplit(url).path.lstrip("/"))
    if not database:
        raise UnknownDatabaseTypeError(
            "DATABASE_URL names no database, and the routes are about the tables of one.",
            hint="Write mysql://host:port/database, or name the schema in routes of your own.",
        )
    return database
