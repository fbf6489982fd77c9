"""The commands of `python -m cdc_tasks`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness.waiting import wait_until
from tests.support.warm_python import WARM

if TYPE_CHECKING:
    from harness.worker import Worker
    from tests.support.helpdesk import HelpDesk
    from tests.support.social_stub import SocialStub

_CHECKOUT = Path(__file__).resolve().parents[3]


def test_an_account_is_connected_with_its_token_encrypted_and_gets_messages(
    helpdesk: HelpDesk, social: SocialStub, worker: Worker
) -> None:
    added = _run(
        helpdesk, "connect-account", "anna@example.com", "slack", "--address", "C0ANNA", secret="xoxb-secret"
    )
    assert "Account 1 connected" in added.stderr
    [(sealed,)] = helpdesk.database.fetch("SELECT secret FROM connected_accounts")
    assert "xoxb" not in sealed
    listed = _run(helpdesk, "accounts").stdout
    assert "anna@example.com" in listed
    assert "xoxb" not in listed

    helpdesk.send("cdc_tasks.notify_ticket_insert", helpdesk.insert_ticket(assigned_to_id=helpdesk.ANNA))
    wait_until(lambda: social.to("C0ANNA"), what="the message")


def test_a_secret_that_is_no_token_and_no_webhook_is_refused_with_status_1(helpdesk: HelpDesk) -> None:
    for arguments, secret, words in (
        (["anna@example.com", "slack"], "https://example.com", "xoxb-"),
        (["anna@example.com", "teams"], "https://169.254.169.254/latest", "is not an allowed webhook host"),
        (["anna@example.com", "teams"], "http://prod.logic.azure.com/x", "https://"),
        (["nobody@example.com", "slack"], "xoxb-good", "No user"),
        (["anna@example.com", "pigeon"], "coo", "slack, teams"),
    ):
        result = _run(helpdesk, "connect-account", *arguments, secret=secret, status=1)
        assert words in result.stderr
        assert "Traceback" not in result.stderr
    assert helpdesk.database.fetch("SELECT count(*) FROM connected_accounts") == [(0,)]


def test_a_key_is_changed_without_losing_an_account(helpdesk: HelpDesk) -> None:
    helpdesk.connect_slack(helpdesk.ANNA, "C0ANNA")
    new_key = _run(helpdesk, "new-key").stdout.strip()

    _run(helpdesk, "rotate-key", CDC_SECRET_KEY=f"{new_key},{helpdesk.key}")

    assert "1 secret encrypted" in _run(helpdesk, "rotate-key", CDC_SECRET_KEY=new_key).stderr
    failed = _run(helpdesk, "rotate-key", status=1)  # with the old key alone
    assert "No key in CDC_SECRET_KEY decrypts" in failed.stderr


def test_the_cache_is_refreshed_without_a_worker(helpdesk: HelpDesk) -> None:
    helpdesk.database.execute("INSERT INTO roles (name) VALUES ('Admin')")

    assert "1 row of roles" in _run(helpdesk, "refresh-cache", "roles").stderr
    assert json.loads(helpdesk.broker.cache.get("master:roles") or b"[]")[0]["name"] == "Admin"
    assert not helpdesk.broker.cache.exists("master:priorities")

    _run(helpdesk, "refresh-cache")
    assert helpdesk.broker.cache.exists("master:priorities")


def test_celery_call_refreshes_one_table(helpdesk: HelpDesk, worker: Worker) -> None:
    WARM.run(
        [
            *(sys.executable, "-m", "celery", "-A", "cdc_tasks", "call"),
            *("cdc_tasks.refresh_master_cache", "--args", '["priorities"]'),
        ],
        env={**os.environ, **helpdesk.environment},
        cwd=_CHECKOUT,
        check=True,
    )
    wait_until(lambda: helpdesk.broker.cache.exists("master:priorities"), what="the priorities in the cache")


def test_a_database_without_the_tables_is_an_error_with_a_hint(helpdesk: HelpDesk) -> None:
    helpdesk.database.execute("DROP TABLE connected_accounts, notification_preferences, tickets, users")
    result = _run(helpdesk, "accounts", status=1)
    assert "create-schema" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_schema_is_printed_and_created(helpdesk: HelpDesk) -> None:
    helpdesk.database.execute("DROP TABLE connected_accounts, tickets")
    assert "CREATE TABLE IF NOT EXISTS tickets" in _run(helpdesk, "schema").stdout
    assert "AUTO_INCREMENT" in _run(helpdesk, "schema", "mysql").stdout

    _run(helpdesk, "create-schema")
    _run(helpdesk, "create-schema")
    assert helpdesk.database.fetch("SELECT count(*) FROM tickets") == [(0,)]


def test_a_worker_with_bad_settings_names_all_of_them_and_ends() -> None:
    environment = {
        **os.environ,
        "CDC_SECRET_KEY": "too-short-a-secret",
        "SLACK_API_URL": "slack.com",
        "CACHE_URL": "memcached://cache",
    }
    environment.pop("DATABASE_URL", None)
    result = WARM.run(
        [sys.executable, "-m", "celery", "-A", "cdc_tasks", "worker"], env=environment, cwd=_CHECKOUT
    )
    assert result.returncode == 1
    for variable in ("DATABASE_URL", "CDC_SECRET_KEY", "SLACK_API_URL", "CACHE_URL"):
        assert variable in result.stderr
    assert "too-short-a-secret" not in result.stderr
    assert "Traceback" not in result.stderr


def _run(
    helpdesk: HelpDesk, *arguments: str, secret: str = "", status: int = 0, **variables: str
) -> subprocess.CompletedProcess[str]:
    result = WARM.run(
        [sys.executable, "-m", "cdc_tasks", *arguments],
        env={**os.environ, **helpdesk.environment, **variables},
        cwd=_CHECKOUT,
        input=f"{secret}\n",
    )
    assert result.returncode == status, result.stderr
    return result
