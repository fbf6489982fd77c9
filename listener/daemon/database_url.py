"""Which kind of database DATABASE_URL names."""

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
    """DATABASE_URL does not name a database that the listener can read."""


_DIALECTS: Final = {
    "postgresql": DatabaseType.POSTGRESQL,
    "postgres": DatabaseType.POSTGRESQL,
    "mysql": DatabaseType.MYSQL,
    "mariadb": DatabaseType.MYSQL,
}


def detect_database_type(url: str) -> DatabaseType:
    """Return it from the URL's scheme, SQLAlchemy's `dialect+driver://` included. Raise UnknownDatabaseTypeError."""
    match = _SCHEME.match(url)
    if not match:
        raise UnknownDatabaseTypeError("not a URL with a scheme such as postgresql:// or mysql://")
    dialect = match["dialect"].lower()
    if dialect not in _DIALECTS:
        raise UnknownDatabaseTypeError(
            f"the listener cannot read {dialect}://, only postgresql://, mysql:// and mariadb://"
        )
    return _DIALECTS[dialect]


def home_schema(url: str) -> str:
    """Return the schema of an application's tables: `public`; on MySQL the database that the URL names.

    Raise UnknownDatabaseTypeError, also if a MySQL URL names no database.
    """
    if detect_database_type(url) is DatabaseType.POSTGRESQL:
        return "public"
    database = unquote(urlsplit(url).path.lstrip("/"))
    if not database:
        raise UnknownDatabaseTypeError(
            "DATABASE_URL names no database, but the routes need one.",
            hint="Write mysql://host:port/database, or name the schema in your own routes.",
            code="no_database_name",
        )
    return database
