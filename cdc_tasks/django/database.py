"""Reads an entry of `DATABASES`: the listener's URL, and the names of tables in the log."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.utils.connection import ConnectionDoesNotExist

from cdc_tasks.environment import SettingsError

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.models import Model

__all__ = [
    "Table",
    "database_url",
    "home_schema",
    "named_table",
    "table_of",
    "url_of",
    "watched_connection",
]

_YOUR_OWN: Final = (
    "Or give the listener its own URL: CDC_DATABASE_URL=postgresql://user:password@host/name or mysql://…"
)
_POSTGRES_NAMES: Final = frozenset({"host", "port", "user", "password", "dbname"})
# libpq's parameters that the listener sets itself, or that belong to the driver's own session.
_NOT_PASSED_ON: Final = frozenset({"client_encoding", "replication", "fallback_application_name"})
_TLS_OF_MYSQLCLIENT: Final = ("ca", "capath", "cert", "key")


@dataclass(frozen=True, slots=True)
class Table:
    """A table's name as the log has it."""

    schema: str
    name: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


def watched_connection(alias: str) -> BaseDatabaseWrapper:
    """Return Django's connection of this alias, not yet opened; raises SettingsError."""
    try:
        return connections[alias]
    except ConnectionDoesNotExist:
        known = ", ".join(sorted(connections))
        raise SettingsError(
            f"CDC_DATABASE={alias!r} is not an alias in DATABASES.",
            hint=f"Use one of: {known}.",
            code="django_database",
        ) from None
    except ImproperlyConfigured as error:  # the engine or its driver cannot be loaded
        raise _unusable(alias, str(error).partition("\n")[0], "Correct the entry.") from error


def database_url(alias: str) -> str:
    """Return the URL of DATABASES[alias], with its password and TLS options; raises SettingsError.

    It is made from Django's own connection parameters. So engines that fetch a password for each connection work here
    too, and in a test runner it is the URL of the test database.
    """
    return url_of(watched_connection(alias))


def url_of(connection: BaseDatabaseWrapper) -> str:
    """Return the URL of a Django connection; raises SettingsError."""
    alias = connection.alias
    if connection.vendor not in {"postgresql", "mysql"}:
        raise _unusable(
            alias,
            f"{connection.settings_dict['ENGINE']} has no log that the listener can read",
            "Use PostgreSQL, MySQL or MariaDB; CDC_DATABASE can name another alias in DATABASES.",
        )
    try:
        given = connection.get_connection_params()
    except ImproperlyConfigured as error:
        raise _unusable(alias, str(error).partition("\n")[0], "Correct the entry.") from error
    return _postgres_url(given) if connection.vendor == "postgresql" else _mysql_url(alias, given)


def home_schema(connection: BaseDatabaseWrapper) -> str:
    """Return the schema of the models' tables.

    On MySQL and MariaDB it is the database; on PostgreSQL `public`, or the first of the search_path in OPTIONS.
    """
    if connection.vendor == "mysql":
        return str(connection.settings_dict["NAME"])
    options = str(connection.settings_dict.get("OPTIONS", {}).get("options") or "")
    path = re.search(r"search_path\s*=\s*\"?(?P<first>[\w$]+)", options)
    return path["first"] if path else "public"


def table_of(model: type[Model], connection: BaseDatabaseWrapper) -> Table:
    """Return a model's table; `db_table` may include a schema: `sales"."orders`."""
    return named_table(model._meta.db_table, home_schema(connection))


def named_table(name: str, schema: str) -> Table:
    """Return the table of a name that may be quoted and may have a schema; `schema` is used if it has none."""
    parts = [part for part in re.split(r"""["`]?\.["`]?""", name.strip('"`')) if part]
    return Table(parts[0], parts[1]) if len(parts) == 2 else Table(schema, name.strip('"`'))


def _postgres_url(given: Mapping[str, Any]) -> str:
    login = _login(given.get("user"), given.get("password"))
    host, port = str(given.get("host") or ""), str(given.get("port") or "")
    options = {name: value for name, value in given.items() if _is_option_of_libpq(name)}
    if _is_plain(host):
        place = _host_and_port(host, port)
    else:  # a socket's directory, or several hosts
        place = ""
        options = {"host": host, **({"port": port} if port else {}), **options}
    query = f"?{urlencode(options, quote_via=quote)}" if options else ""
    return f"postgresql://{login}{place}/{_escaped(given.get('dbname') or '')}{query}"


def _is_option_of_libpq(name: str) -> bool:
    """Return whether it is a libpq parameter: others belong to psycopg, or to Django."""
    from psycopg2 import ProgrammingError
    from psycopg2.extensions import make_dsn

    if name in _POSTGRES_NAMES | _NOT_PASSED_ON:
        return False
    try:
        make_dsn(**{name: "1"})
    except (ProgrammingError, TypeError):
        return False
    return True


def _mysql_url(alias: str, given: Mapping[str, Any]) -> str:
    if given.get("read_default_file") and not given.get("user"):
        raise _unusable(
            alias, "its user is in a MySQL option file", "Write USER and PASSWORD into DATABASES."
        )
    host, port = str(given.get("host") or ""), str(given.get("port") or "")
    options = {**_tls(alias, given)}
    if socket := given.get("unix_socket"):
        options = {"unix_socket": str(socket), **options}
    query = f"?{urlencode(options, quote_via=quote)}" if options else ""
    name = _escaped(given.get("database") or given.get("db") or "")
    login = _login(given.get("user"), given.get("password") or given.get("passwd"))
    return f"mysql://{login}{_host_and_port(host or 'localhost', port)}/{name}{query}"


def _tls(alias: str, given: Mapping[str, Any]) -> dict[str, str]:
    """Return the TLS options under the listener's names. Raises SettingsError if they are incomplete."""
    ssl = given.get("ssl")
    in_dict: dict[str, Any] = ssl if isinstance(ssl, dict) else {}
    found = {f"ssl_{name}": str(in_dict[name]) for name in _TLS_OF_MYSQLCLIENT if in_dict.get(name)}
    found |= {
        f"ssl_{name}": str(given[f"ssl_{name}"]) for name in _TLS_OF_MYSQLCLIENT if given.get(f"ssl_{name}")
    }
    mode = str(given.get("ssl_mode") or "").upper()
    if mode in {"REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY"} and not {"ssl_ca", "ssl_capath"} & set(found):
        raise _unusable(
            alias,
            f"ssl_mode is {mode}, and no certificate authority is named",
            'Name it: without it the listener cannot enforce TLS. "OPTIONS": {"ssl": {"ca": "/path/of/ca.pem"}}.',
        )
    checks_name = in_dict.get("check_hostname", True) and mode not in {"REQUIRED", "VERIFY_CA"}
    return found if checks_name or not found else {**found, "ssl_check_hostname": "false"}


def _login(user: object, password: object) -> str:
    if not user and not password:
        return ""
    secret = f":{_escaped(password)}" if password else ""
    return f"{_escaped(user or '')}{secret}@"


def _is_plain(host: str) -> bool:
    """Return whether it is one host's name or address, not a directory or a list."""
    return not set("/,@") & set(host)


def _host_and_port(host: str, port: str) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"{name}:{port}" if port else name


def _escaped(text: object) -> str:
    return quote(str(text), safe="")


def _unusable(alias: str, problem: str, cure: str) -> SettingsError:
    return SettingsError(
        f"DATABASES[{alias!r}] cannot be watched: {problem}.",
        hint=f"{cure}\n  {_YOUR_OWN}",
        code="django_database",
    )
