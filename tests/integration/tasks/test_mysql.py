"""The tasks read MySQL and MariaDB like PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy
from pydantic import SecretStr

from cdc_tasks import cache, db, master_cache
from cdc_tasks.celery import app
from cdc_tasks.helpdesk import schema
from cdc_tasks.helpdesk.users import get_manager_ids
from cdc_tasks.notify import accounts, sealed_secrets
from cdc_tasks.notify.delivery import deliver
from cdc_tasks.settings import worker_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Broker
    from tests.support.mysql.source import MySQLDatabase
    from tests.support.social_stub import SocialStub


@pytest.fixture
def connection(
    any_mysql: MySQLDatabase, broker: Broker, social: SocialStub, monkeypatch: pytest.MonkeyPatch
) -> Iterator[sqlalchemy.Connection]:
    """A new help desk on MariaDB and on MySQL; this process has a worker's settings."""
    monkeypatch.setenv("DATABASE_URL", any_mysql.url)
    monkeypatch.setenv("CACHE_URL", broker.cache_url)
    monkeypatch.setenv("CDC_SECRET_KEY", sealed_secrets.new_key())
    monkeypatch.setenv("SLACK_API_URL", social.slack_api_url)
    caches = (worker_settings, db.engine, cache.client, sealed_secrets._keys)
    for cached in caches:
        cached.cache_clear()
    app.loader.import_default_modules()
    schema.create(db.engine())
    schema.create(db.engine())  # may be run any number of times
    with db.engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield connection
    db.engine().dispose()
    cache.client().close()
    for cached in caches:
        cached.cache_clear()


def test_a_message_is_written_from_the_rows(connection: sqlalchemy.Connection, social: SocialStub) -> None:
    connection.exec_driver_sql(
        "INSERT INTO users (id, name, email, manager_id) VALUES"
        " (1, 'Móna 🎫', 'mona@example.com', NULL), (2, 'Anna', 'anna@example.com', 1)"
    )
    connection.exec_driver_sql("INSERT INTO tickets (id, title, assigned_to_id) VALUES (7, 'Feuer 🔥', 2)")
    with db.session() as session:
        assert get_manager_ids(2, session) == [1]
        account_id = accounts.connect(
            session,
            email="mona@example.com",
            service="slack",
            address="C0MONA",
            secret=SecretStr("xoxb-good"),
        )

    changed = {"assigned_to_id": [1, 2], "status": ["closed", "open"]}
    assert deliver(account_id, "manager_ticket_updated", 7, "change", changed) == "sent to slack"
    for words in ("TKT-00007 Feuer 🔥", "Móna 🎫 → Anna", "closed → open", "Normal"):
        assert words in social.posted[0].text


def test_the_master_cache_is_filled(connection: sqlalchemy.Connection) -> None:
    assert [row["name"] for row in master_cache.get("priorities")] == ["Low", "Normal", "High", "Urgent"]
    connection.exec_driver_sql("UPDATE priorities SET name = 'Now' WHERE name = 'Urgent'")
    master_cache.refresh("priorities")
    assert [row["name"] for row in master_cache.get("priorities")] == ["Low", "Normal", "High", "Now"]
    assert [row["name"] for row in master_cache.get("statuses:open")] == ["open", "in progress"]
