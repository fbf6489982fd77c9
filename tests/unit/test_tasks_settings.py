from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cdc_tasks.db import UnknownDatabaseError, sqlalchemy_url
from cdc_tasks.notify.sealed_secrets import new_key
from cdc_tasks.settings import SettingsError, WorkerSettings, load

_CHECKOUT = Path(__file__).resolve().parents[2]


def test_all_problems_are_reported_at_once_with_secrets_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("CACHE_URL", "http://user:hunter2@cache")
    monkeypatch.setenv("CDC_SECRET_KEY", "my-secret-key")
    monkeypatch.setenv("CDC_LOST_ANSWER", "panic")
    with pytest.raises(SettingsError) as caught:
        load(WorkerSettings)
    text = str(caught.value)
    for variable in (
        "DATABASE_URL is not set",
        "CACHE_URL=",
        "CDC_SECRET_KEY=***",
        "CDC_LOST_ANSWER='panic'",
    ):
        assert variable in text
    assert "hunter2" not in text
    assert "my-secret-key" not in text
    assert "python -m cdc_tasks new-key" in text


def test_several_keys_and_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://localhost/x")
    monkeypatch.setenv("CDC_SECRET_KEY", f"{new_key()}, {new_key()}")
    monkeypatch.setenv("CDC_TASK_MODULES", "myapp.tasks, myapp.more")
    assert load(WorkerSettings).cdc_task_modules == ("myapp.tasks", "myapp.more")


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("postgresql://user:p%40ss@host/name", "postgresql+psycopg2"),
        ("postgres://user:p%40ss@host/name", "postgresql+psycopg2"),
        ("postgresql+psycopg2://user:p%40ss@host/name", "postgresql+psycopg2"),
        ("mysql://user:p%40ss@host/name", "mysql+pymysql"),
        ("mariadb://user:p%40ss@host/name", "mysql+pymysql"),
        ("mysql+pymysql://user:p%40ss@host/name", "mysql+pymysql"),
    ],
)
def test_every_way_to_write_a_database_url_leads_to_the_installed_driver(url: str, driver: str) -> None:
    mapped = sqlalchemy_url(url)
    assert mapped.drivername == driver
    assert (mapped.username, mapped.password, mapped.host, mapped.database) == (
        "user",
        "p@ss",
        "host",
        "name",
    )


def test_any_other_database_is_an_error_without_the_password() -> None:
    with pytest.raises(UnknownDatabaseError) as caught:
        sqlalchemy_url("oracle://user:hunter2@host/name")
    assert "oracle://" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_the_listeners_part_is_imported_without_celery_and_sqlalchemy() -> None:
    program = (
        "import sys, cdc_tasks.changes, cdc_tasks.errors, cdc_tasks.settings, cdc_tasks.logs;"
        "print([name for name in ('celery', 'kombu', 'sqlalchemy', 'slack_sdk') if name in sys.modules])"
    )
    assert _output(program, dict(os.environ)) == ["[]"]


@pytest.mark.parametrize(
    ("broker", "exchange_type", "arguments"),
    [
        ("redis://localhost:6379/0", "direct", None),
        ("amqp://guest:guest@localhost//", "topic", {"x-queue-type": "quorum"}),
    ],
)
def test_each_task_goes_to_its_queue(
    broker: str, exchange_type: str, arguments: dict[str, str] | None
) -> None:
    program = (
        "from celery import Celery\n"
        "app = Celery('listener'); app.config_from_object('cdc_tasks.config.celery')\n"
        "for name in 'notify_ticket_insert deliver refresh_master_cache refresh_all_master_caches'.split():\n"
        "    queue = app.amqp.router.route({}, f'cdc_tasks.{name}')['queue']\n"
        "    print(name, queue.name, queue.exchange.type, queue.queue_arguments)\n"
        "print(app.amqp.router.route({}, 'myapp.index')['queue'].name, *sorted(app.amqp.queues))\n"
        "import sys; print('sqlalchemy' in sys.modules, 'cdc_tasks.helpdesk.tickets' in sys.modules)\n"
    )
    environment = {**os.environ, "CELERY_BROKER_URL": broker}
    environment.pop("DATABASE_URL", None)  # Flower does not need it
    keyed = ["cdc_keyed", *(f"cdc_keyed_{number}" for number in range(8))]
    partitions = " ".join([*keyed, ""]) if exchange_type == "topic" else ""
    assert _output(program, environment) == [
        f"notify_ticket_insert cdc_notifications {exchange_type} {arguments}",
        f"deliver cdc_notifications {exchange_type} {arguments}",
        f"refresh_master_cache cdc_cache {exchange_type} {arguments}",
        f"refresh_all_master_caches cdc_cache {exchange_type} {arguments}",
        f"celery cdc_bulk cdc_cache {partitions}cdc_notifications celery",
        "False False",
    ]


def _output(program: str, environment: dict[str, str]) -> list[str]:
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        cwd=_CHECKOUT,
        check=True,
        capture_output=True,
        text=True,
    )
    return result.stdout.splitlines()
