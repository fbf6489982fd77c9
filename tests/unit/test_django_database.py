"""An entry of DATABASES becomes a URL that the listener connects with as Django does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import django
import pymysql
import pytest
from django.conf import settings
from django.db.utils import ConnectionHandler

from cdc_tasks.addresses import check_address
from cdc_tasks.django.database import home_schema, url_of, watched_connection
from cdc_tasks.settings import SettingsError
from harness.server_process import free_port
from listener.core.source import SourceLostError
from listener.mysql.client.connection import Address, connect
from listener.mysql.errors import translate
from listener.postgres.client.connection import connection_parameters

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

pymysql.install_as_MySQLdb()
if not settings.configured:
    settings.configure()
    django.setup()

_STRANGE = "p:a/s?s#w[o]r@d% +&=äß🔑'\"\\ ;"


def _connection(engine: str, **entry: Any) -> BaseDatabaseWrapper:
    defaults = {"NAME": "shop", "USER": "ann", "PASSWORD": _STRANGE, "HOST": "db.example.com", "PORT": "6543"}
    backend = engine if "." in engine else f"django.db.backends.{engine}"
    return ConnectionHandler({"default": {"ENGINE": backend, **defaults, **entry}})["default"]


def _postgres(**entry: Any) -> dict[str, Any]:
    url = url_of(_connection("postgresql", **entry))
    check_address(url)  # what DATABASE_URL has to pass
    return connection_parameters(url)


def _mysql(**entry: Any) -> Address:
    url = url_of(_connection("mysql", **entry))
    check_address(url)
    return Address.parse(url)


def test_a_strange_password_and_name_arrive_as_they_are() -> None:
    found = _postgres(NAME="my shop/ü", USER="a@b:c")
    assert {name: found[name] for name in ("host", "port", "user", "password", "dbname")} == {
        "host": "db.example.com",
        "port": "6543",
        "user": "a@b:c",
        "password": _STRANGE,
        "dbname": "my shop/ü",
    }
    address = _mysql(NAME="my shop/ü", USER="a@b:c")
    assert (address.host, address.port, address.user) == ("db.example.com", 6543, "a@b:c")
    assert (address.password, address.database) == (_STRANGE, "my shop/ü")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"HOST": "/run/my postgres"}, {"host": "/run/my postgres", "port": "6543"}),
        ({"HOST": "::1"}, {"host": "::1", "port": "6543"}),
        ({"HOST": "a,b", "PORT": "1,2"}, {"host": "a,b", "port": "1,2"}),
        ({"HOST": "", "PORT": ""}, {"host": None, "port": None}),
        (
            {"OPTIONS": {"sslmode": "verify-full", "sslrootcert": "/etc/c a.pem", "connect_timeout": 3}},
            {"sslmode": "verify-full", "sslrootcert": "/etc/c a.pem", "connect_timeout": "3"},
        ),
        (
            {"NAME": "", "USER": "", "PASSWORD": "", "HOST": "", "PORT": "", "OPTIONS": {"service": "shop"}},
            {"service": "shop", "user": None, "host": None, "dbname": None},
        ),
        ({"OPTIONS": {"target_session_attrs": "read-write"}}, {"target_session_attrs": "read-write"}),
    ],
    ids=["socket", "IPv6", "hosts", "default", "tls", "service", "primary"],
)
def test_what_libpq_knows_is_passed_on(entry: dict[str, Any], expected: dict[str, Any]) -> None:
    found = _postgres(**entry)
    assert {name: found.get(name) for name in expected} == expected


def test_options_of_the_driver_and_of_django_are_not() -> None:
    url = url_of(_connection("postgresql", OPTIONS={"isolation_level": 3, "server_side_binding": True}))
    assert "?" not in url


def test_an_engine_that_is_built_on_djangos_is_taken_for_what_it_speaks() -> None:
    assert url_of(_connection("tests.support.django_engine")).startswith("postgresql://ann:fresh@")


@pytest.mark.parametrize(
    ("entry", "options"),
    [
        ({"HOST": "/run/mysqld.sock"}, {"unix_socket": "/run/mysqld.sock"}),
        ({"OPTIONS": {"charset": "utf8mb4", "init_command": "SET sql_mode=''"}}, {}),
        (
            {"OPTIONS": {"ssl": {"ca": "/c a.pem", "cert": "/cert", "key": "/key"}}},
            {"ssl_ca": "/c a.pem", "ssl_cert": "/cert", "ssl_key": "/key"},
        ),
        (
            {"OPTIONS": {"ssl_mode": "VERIFY_CA", "ssl": {"ca": "/ca"}}},
            {"ssl_ca": "/ca", "ssl_check_hostname": "false"},
        ),
        ({"OPTIONS": {"ssl_mode": "VERIFY_IDENTITY", "ssl": {"ca": "/ca"}}}, {"ssl_ca": "/ca"}),
        (
            {"OPTIONS": {"ssl_ca": "/ca", "ssl": {"check_hostname": False}}},
            {"ssl_ca": "/ca", "ssl_check_hostname": "false"},
        ),
        ({"OPTIONS": {"ssl_mode": "PREFERRED"}}, {}),
    ],
    ids=["socket", "session", "tls", "verify-ca", "verify-identity", "pymysql", "preferred"],
)
def test_options_of_mysql(entry: dict[str, Any], options: dict[str, str]) -> None:
    assert _mysql(**entry).options == options


@pytest.mark.parametrize(
    ("engine", "entry", "problem"),
    [
        ("sqlite3", {}, "django.db.backends.sqlite3 has no log that the listener can read"),
        ("mysql", {"OPTIONS": {"ssl_mode": "REQUIRED"}}, "no certificate authority is named"),
        ("mysql", {"USER": "", "OPTIONS": {"read_default_file": "/etc/my.cnf"}}, "in a MySQL option file"),
        ("postgresql", {"NAME": ""}, "settings.DATABASES is improperly configured"),
    ],
    ids=["sqlite", "tls", "my.cnf", "no name"],
)
def test_what_cannot_be_watched_is_refused_with_a_cure(
    engine: str, entry: dict[str, Any], problem: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        url_of(_connection(engine, **entry))
    error = caught.value
    assert error.code == "django_database"
    assert problem in error.message
    assert "CDC_DATABASE_URL=" in str(error.hint)
    assert _STRANGE not in str(error)


@pytest.mark.parametrize(
    ("engine", "entry", "schema"),
    [
        ("postgresql", {}, "public"),
        (
            "postgresql",
            {"OPTIONS": {"options": "-c statement_timeout=5 -c search_path=sales,public"}},
            "sales",
        ),
        ("mysql", {}, "shop"),
    ],
)
def test_the_schema_of_the_models(engine: str, entry: dict[str, Any], schema: str) -> None:
    assert home_schema(_connection(engine, **entry)) == schema


def test_an_alias_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(SettingsError, match="CDC_DATABASE='lte' is not an alias in DATABASES") as caught:
        watched_connection("lte")
    assert caught.value.hint == "Use one of: default."


def test_errors_of_pymysql_are_known_where_django_loads_it_as_mysqldb_too() -> None:
    """Django imports MySQLdb.converters: that puts a second `err`, with other classes, into the module pymysql."""
    assert _connection("mysql").Database is pymysql
    with pytest.raises(SourceLostError):
        connect(f"mysql://ann@127.0.0.1:{free_port()}/shop")
    assert isinstance(translate(pymysql.InterfaceError(0, ""), "'ann'@'%'"), SourceLostError)
