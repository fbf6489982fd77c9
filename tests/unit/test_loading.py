"""Routes that serve PostgreSQL and MySQL alike: the schema comes from DATABASE_URL."""

from __future__ import annotations

import pytest

from listener.daemon.database_url import UnknownDatabaseTypeError
from listener.daemon.load_routes import load_router
from listener.router import BinlogRouter

_HELP_DESK = "listener.routes:setup_router"
_ONE_ROUTE = BinlogRouter()
_ONE_ROUTE.register("mine", "tickets", "insert", "a.task")


def without_schema() -> BinlogRouter:
    """Return routes of a user who knows the schema."""
    return _ONE_ROUTE


def _schemas(reference: str, url: str | None) -> set[str]:
    return {route.schema for route in load_router(reference, url).routes}


@pytest.mark.parametrize(
    ("url", "schema"),
    [
        (None, "public"),
        ("postgresql://host/helpdesk", "public"),
        ("postgresql+psycopg2://host/helpdesk", "public"),
        ("mysql://user:p%40ss@host:3306/helpdesk", "helpdesk"),
        ("mariadb://host/help%20desk?ssl_ca=/ca.pem", "help desk"),
        ("mysql+pymysql://host/helpdesk", "helpdesk"),
    ],
)
def test_routes_that_take_a_schema_get_that_of_the_database(url: str | None, schema: str) -> None:
    assert _schemas(_HELP_DESK, url) == {schema}


@pytest.mark.parametrize("reference", [f"{__name__}:without_schema", f"{__name__}:_ONE_ROUTE"])
def test_routes_that_take_none_stay_as_they_are(reference: str) -> None:
    assert _schemas(reference, "mysql://host/") == {"mine"}


def test_a_url_of_mysql_without_a_database_is_told_when_routes_ask_for_it() -> None:
    with pytest.raises(UnknownDatabaseTypeError, match="names no database") as told:
        load_router(_HELP_DESK, "mysql://user:secret@host/")
    assert "secret" not in str(told.value)
