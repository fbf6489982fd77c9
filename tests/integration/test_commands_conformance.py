"""What `python -m listener run` does alike with every database, as an operator meets it."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest

from harness.waiting import at_most, wait_until
from tests.support.listening import wait_for_listener
from tests.support.mysql.source import MySQLDatabase
from tests.support.operators import Operator, operator_on

if TYPE_CHECKING:
    from tests.conftest import Broker, Database


@pytest.fixture(params=["database", "mariadb_database", "mysql_database"])
def each_database(request: pytest.FixtureRequest) -> Database | MySQLDatabase:
    found: Database | MySQLDatabase = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def operator(each_database: Database | MySQLDatabase, broker: Broker) -> Operator:
    return operator_on(each_database, broker)


def test_a_gap_stops_it_until_it_is_accepted(
    operator: Operator, each_database: Database | MySQLDatabase, broker: Broker
) -> None:
    with operator.running() as listener:
        wait_for_listener(each_database, timeout=30)
        each_database.execute("INSERT INTO roles VALUES (1, 'a')")
        wait_until(lambda: broker.client.llen("cdc_bulk") == 1, what="the first task")
        listener.send_signal(signal.SIGTERM)
        assert listener.wait(timeout=at_most(10)) == 0
    each_database.execute("INSERT INTO roles VALUES (2, 'missed')")
    reason = _forget_the_log(each_database)
    stopped = operator.types("run")
    assert stopped.returncode == 1
    assert "--accept-gap" in stopped.stderr
    assert reason in stopped.stderr
    assert not operator.asks("check")["ready"]
    with operator.running("run", "--accept-gap"):
        wait_for_listener(each_database, timeout=30)
        each_database.execute("INSERT INTO roles VALUES (3, 'b')")
        wait_until(lambda: broker.client.llen("cdc_bulk") == 2, what="the task after the gap")


def test_a_second_listener_waits_says_so_and_takes_over(
    operator: Operator, each_database: Database | MySQLDatabase, broker: Broker
) -> None:
    with operator.running() as first:
        wait_for_listener(each_database, timeout=30)
        with operator.running("run", "--json-logs") as second:
            assert second.stderr is not None
            events = (json.loads(line)["event"] for line in second.stderr)
            assert "standby" in iter(events)
            first.send_signal(signal.SIGKILL)
            assert "streaming" in iter(events)
            each_database.execute("INSERT INTO roles VALUES (1, 'a')")
            wait_until(lambda: broker.client.llen("cdc_bulk") == 1, what="a task of the second listener")


def _forget_the_log(database: Database | MySQLDatabase) -> str:
    """Return the word with which the listener then says what has become of it."""
    if isinstance(database, MySQLDatabase):
        database.purge_logs()
        return "purged"
    database.execute("SELECT pg_drop_replication_slot(%s)", database.name)
    return "gone"
