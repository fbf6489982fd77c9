"""The listener's commands as an operator types them, on a real MariaDB and a real MySQL."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from harness.embedded_servers import ValkeyServer
from harness.waiting import at_most, wait_until
from tests.support.listening import wait_for_listener
from tests.support.operators import ROUTES, Operator, operator_on, tasks_in

if TYPE_CHECKING:
    from tests.conftest import Broker
    from tests.support.mysql.source import MySQLDatabase


@pytest.fixture
def operator(any_mysql: MySQLDatabase, broker: Broker) -> Operator:
    return operator_on(any_mysql, broker)


@pytest.fixture
def operator_on_mariadb(mariadb_database: MySQLDatabase, broker: Broker) -> Operator:
    """The same on MariaDB alone, for what does not depend on the server."""
    return operator_on(mariadb_database, broker)


def _caught_up(operator: Operator) -> Any:
    status = operator.asks("status")
    return status if status["lag_bytes"] == 0 else None


def test_from_check_to_a_task_to_a_stop(operator: Operator, any_mysql: MySQLDatabase, broker: Broker) -> None:
    checked = operator.asks("check")
    assert checked["ready"], checked
    (bookmark,) = [each for each in checked["findings"] if each["what"] == "bookmark"]
    assert (bookmark["state"], "CONFIG SET appendonly yes" in bookmark["hint"]) == ("warning", True)
    assert {each["table"] for each in operator.asks("routes")} == {f"{any_mysql.name}.roles"}
    before = operator.types("status")
    assert (before.returncode, "never started" in before.stdout) == (1, True)

    with operator.running() as listener:
        wait_for_listener(any_mysql, timeout=30)
        any_mysql.execute("INSERT INTO roles VALUES (1, 'Auditor')", "UPDATE roles SET name = 'Admin'")
        wait_until(lambda: broker.client.llen("celery") == 2, what="two tasks in the default queue")
        wait_until(lambda: broker.client.llen("cdc_bulk") == 1, what="the batch that is not full")
        assert {each["headers"]["task"] for each in tasks_in(broker, "celery")} == {
            "tests.refresh",
            "tests.renamed",
        }

        status = wait_until(lambda: _caught_up(operator), what="the listener to have caught up", timeout=30)
        assert (status["listener"], status["alarms"], status["lag_seconds"]) == ("running", [], 0.0)
        assert status["checkpoint"].startswith("binlog.")
        assert operator.types("status").returncode == 0
        assert operator.asks("check")["ready"]

        listener.send_signal(signal.SIGTERM)
        assert listener.wait(timeout=at_most(10)) == 0
    stopped = operator.types("status")
    assert (stopped.returncode, "held by no session" in stopped.stdout) == (1, True)


def test_problems_are_shown_with_what_to_paste_and_fail_the_command(
    operator_on_mariadb: Operator, mariadb_database: MySQLDatabase
) -> None:
    mariadb_database.execute(
        f"CREATE USER {mariadb_database.name}@'%' IDENTIFIED BY 'db-secret'",
        f"GRANT SELECT ON {mariadb_database.name}.* TO {mariadb_database.name}@'%'",
    )
    poor = mariadb_database.server.url_of(mariadb_database.name, user=f"{mariadb_database.name}:db-secret")
    try:
        done = operator_on_mariadb.types(
            "check", DATABASE_URL=poor, CELERY_BROKER_URL="redis://:broker-secret@127.0.0.1:1/0"
        )
        ran = operator_on_mariadb.types("run", DATABASE_URL=poor)
    finally:
        mariadb_database.execute(f"DROP USER {mariadb_database.name}@'%'")
    assert done.returncode == ran.returncode == 1
    assert "GRANT SELECT, REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO" in done.stdout
    assert "Start it, or correct CELERY_BROKER_URL." in done.stdout
    for text in (done.stdout + done.stderr, ran.stdout + ran.stderr):
        assert "secret" not in text
        assert "Traceback" not in text
    of_postgres = operator_on_mariadb.types("check", CDC_ROUTES=f"{ROUTES}:routes")
    assert of_postgres.returncode == 1
    assert "table public.roles" in of_postgres.stdout
    assert "the schema is the database's name; there are: " in of_postgres.stdout
    assert mariadb_database.name in of_postgres.stdout


def test_reading_begins_with_the_oldest_log_where_that_is_asked_for_and_json_logs_are_json(
    operator_on_mariadb: Operator, mariadb_database: MySQLDatabase, broker: Broker
) -> None:
    mariadb_database.purge_logs()  # of other tests, with what stops a listener
    mariadb_database.execute("INSERT INTO roles VALUES (1, 'before')")
    with operator_on_mariadb.running("run", "--from-start", "--json-logs") as listener:
        wait_until(lambda: broker.client.llen("cdc_bulk") == 1, what="the row of before", timeout=30)
        listener.send_signal(signal.SIGINT)
        assert listener.wait(timeout=at_most(10)) == 0
        assert listener.stderr is not None
        lines = [json.loads(line) for line in listener.stderr]
    assert [each["event"] for each in lines] == ["starting", "streaming", "first_start", "stopped"]
    assert "mysql://" not in json.dumps(lines)


def test_what_a_route_could_not_take_is_listed_shown_replayed_and_dropped(
    operator_on_mariadb: Operator, mariadb_database: MySQLDatabase, broker: Broker
) -> None:
    operator_on_mariadb.environment["CDC_ROUTES"] = f"{ROUTES}:failing"
    with operator_on_mariadb.running():
        wait_for_listener(mariadb_database, timeout=30)
        named = ", ".join(f"({number}, 'named')" for number in range(2, 13))
        mariadb_database.execute(f"INSERT INTO roles VALUES (1, NULL), {named}")
        wait_until(lambda: broker.client.llen("celery") == 11, what="the tasks that work")
        parked = operator_on_mariadb.asks("parked", "list")
    assert [each["change"]["after"]["id"] for each in parked] == [1, *range(1, 13)]
    assert operator_on_mariadb.asks("status")["parked"] == 13
    (first,) = (each["id"] for each in parked if each["task"] == "tests.named")
    shown = json.loads(operator_on_mariadb.types("parked", "show", first).stdout)
    assert shown["change"]["after"] == {"id": 1, "name": None}

    fixed = {"CDC_ROUTES": f"{ROUTES}:fixed"}
    replayed = operator_on_mariadb.types("parked", "replay", first, **fixed)
    assert (replayed.returncode, replayed.stdout) == (0, f"{first}: sent to tests.named\n")
    assert tasks_in(broker, "celery")[-1]["headers"]["id"] == first
    assert operator_on_mariadb.types("parked", "drop", "--all").stdout.count("dropped") == 12
    assert operator_on_mariadb.asks("parked", "list") == []


def test_a_broker_that_lost_its_data_is_told_by_check_and_status_and_mended_by_run(
    operator: Operator, any_mysql: MySQLDatabase
) -> None:
    with ValkeyServer() as lossy:
        operator.environment["CELERY_BROKER_URL"] = lossy.url
        with operator.running() as listener:
            wait_for_listener(any_mysql, timeout=30)
            listener.send_signal(signal.SIGTERM)
            assert listener.wait(timeout=at_most(10)) == 0
        lossy.restart(keep_data=False)
        any_mysql.execute("INSERT INTO roles VALUES (1, 'meanwhile')")

        findings = {each["what"]: each for each in operator.asks("check")["findings"]}
        assert findings["bookmark"]["state"] == "ok"
        found = findings["broker's data"]
        assert (found["state"], "has lost its data" in found["found"]) == ("warning", True)
        assert operator.asks("status")["listener"] == "none"
        with operator.running("run", "--json-logs") as listener:
            assert listener.stderr is not None
            assert "broker_behind" in (json.loads(line)["event"] for line in listener.stderr)
            wait_until(lambda: operator.asks("status")["checkpoint"], what="a checkpoint", timeout=30)
        assert "broker's data" not in {each["what"] for each in operator.asks("check")["findings"]}
