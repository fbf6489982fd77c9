"""Addresses as people write them: of several hosts, and with a password in an odd place."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest
import sqlalchemy

from cdc_tasks.db import sqlalchemy_url
from cdc_tasks.errors import mask_secrets
from cdc_tasks.settings import SettingsError
from listener.daemon.settings import ListenerSettings, RouteSettings, load
from listener.postgres.client.connection import connect, connect_replication, fetch_value

if TYPE_CHECKING:
    from tests.conftest import Database


def test_several_hosts_are_tried_in_turn_by_listener_and_workers(any_database: Database) -> None:
    port = any_database.server.port
    url = any_database.url.replace(f"127.0.0.1:{port}", "")
    url += f"?host=127.0.0.1,127.0.0.1&port=1,{port}&target_session_attrs=read-write"
    with closing(connect(url)) as connection:
        assert fetch_value(connection, "SELECT current_database()") == any_database.name
    connect_replication(url).close()
    with sqlalchemy.create_engine(sqlalchemy_url(url)).connect() as session:
        assert session.scalar(sqlalchemy.text("SELECT current_database()")) == any_database.name


def test_several_hosts_may_stand_where_one_does(database: Database) -> None:
    here = f"127.0.0.1:{database.server.port}"
    connect(database.url.replace(here, f"127.0.0.1:1,{here}")).close()


def test_a_broker_url_without_slashes_is_refused_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://user@host/name")
    monkeypatch.setenv("CELERY_BROKER_URL", "redis:a-secret@host:6379")
    with pytest.raises(SettingsError, match="not a URL with a scheme") as raised:
        load(ListenerSettings)
    assert "a-secret" not in str(raised.value)


def test_a_password_with_an_at_sign_is_masked_to_its_end() -> None:
    assert mask_secrets("amqp://user:a@secret@host/ is away") == "amqp://user:***@host/ is away"


def test_routes_in_a_module_that_is_relative_to_none_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDC_ROUTES", ".routes:setup")
    with pytest.raises(SettingsError, match="CDC_ROUTES"):
        load(RouteSettings)
