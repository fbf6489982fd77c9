"""Messages that cannot be decoded, rows that cannot be rendered, rows that the server cannot send."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import pytest

from harness.waiting import at_most, wait_until
from listener.postgres.log.position import parse_lsn
from tests.support.listening import wait_for_listener
from tests.support.operators import ROUTES, Operator, operator_on, tasks_in
from tests.support.postgres.proxy import PostgresProxy

if TYPE_CHECKING:
    from tests.conftest import Broker, Database

_TUPLE = b"N\0\2t\0\0\0\1"  # of pgoutput: two columns, the first one's text is one byte long


def _fails_at_a_row(operator: Operator, database: Database, proxy: PostgresProxy) -> dict[str, str]:
    """Return the line with which it ends, after a row that `proxy` damages."""
    url = proxy.url(database.url)
    with operator.running("run", "--json-logs", DATABASE_URL=url) as listener:
        wait_for_listener(database, timeout=30)
        database.execute("INSERT INTO roles VALUES (1, 'damaged')")
        database.execute("INSERT INTO roles VALUES (2, 'after it')")
        _, stderr = listener.communicate(timeout=at_most(60))
    assert listener.returncode == 1
    assert "Traceback" not in stderr
    last: dict[str, str] = json.loads(stderr.splitlines()[-1])
    assert last["event"] == "failed"
    assert "damaged" not in last["error"]
    return last


def _skips_as_told(operator: Operator, database: Database, broker: Broker, hint: str) -> None:
    """Paste the hint: the slot goes past the transaction, and the next one's task comes."""
    (advance,) = [line.strip() for line in hint.splitlines() if "pg_replication_slot_advance" in line]
    wait_until(
        lambda: database.fetch(
            "SELECT 1 FROM pg_replication_slots WHERE NOT active AND slot_name = %s", database.name
        ),
        what="the slot to be free",
    )
    database.execute(advance.rstrip(";"))
    with operator.running("run", "--accept-gap"):
        wait_until(lambda: tasks_in(broker, "celery"), what="the task of the row behind", timeout=30)
    assert len(tasks_in(broker, "celery")) == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param({_TUPLE: b"N\0\2x\0\0\0\1"}, "of table public.roles", id="a value of no known kind"),
        pytest.param({_TUPLE: b"N\0\7t\0\0\0\1"}, "of table public.roles", id="more values than there are"),
        pytest.param({b"roles\0": b"roles!"}, "cannot be decoded", id="a relation"),
    ],
)
def test_a_message_that_cannot_be_decoded_stops_the_listener_with_place_and_hint(
    database: Database, broker: Broker, damage: dict[bytes, bytes], message: str
) -> None:
    operator = operator_on(database, broker)
    operator.environment["CDC_ROUTES"] = f"{ROUTES}:fixed"
    with PostgresProxy(database.server.port, replaces=damage) as proxy:
        failed = _fails_at_a_row(operator, database, proxy)
    assert message in failed["error"]
    ((end,),) = database.fetch("SELECT pg_current_wal_lsn()::text")
    place = failed["error"].rsplit("commits at ", 1)[1].rstrip(".")
    assert 0 < parse_lsn(place) < parse_lsn(end)
    _skips_as_told(operator, database, broker, failed["hint"])


def test_a_message_of_wal2json_that_cannot_be_decoded_stops_the_listener_too(
    debian_database: Database, broker: Broker
) -> None:
    operator = operator_on(debian_database, broker)
    operator.environment |= {"CDC_ROUTES": f"{ROUTES}:fixed", "CDC_PLUGIN": "wal2json"}
    damage = {b'"value":"damaged"': b'"value":{"a":123}'}
    with PostgresProxy(debian_database.server.port, replaces=damage) as proxy:
        failed = _fails_at_a_row(operator, debian_database, proxy)
    _skips_as_told(operator, debian_database, broker, failed["hint"])


@pytest.mark.parametrize("key", ["held", "parked"])
def test_what_is_not_ours_in_redis_is_told_with_the_way_out(
    database: Database, broker: Broker, key: str
) -> None:
    operator = operator_on(database, broker)
    broker.client.hset(f"cdc:{database.name}:{key}", "x", "what is this")
    done = operator.types(*(["run"] if key == "held" else ["parked", "list"]))
    assert done.returncode == 1
    assert f"redis-cli {'DEL' if key == 'held' else 'HDEL'} cdc:{database.name}:{key}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_row_that_the_server_cannot_send_is_told_with_place_and_a_hint_that_works(
    database: Database, broker: Broker
) -> None:
    operator = operator_on(database, broker)
    operator.environment["CDC_ROUTES"] = f"{ROUTES}:fixed"
    error = ("XX000", "invalid memory alloc request size 1258291203")
    with PostgresProxy(database.server.port, errors={b"damaged": error}) as proxy:
        failed = _fails_at_a_row(operator, database, proxy)
    assert "invalid memory alloc request size" in failed["error"]
    assert "columns=" in failed["hint"]
    _skips_as_told(operator, database, broker, failed["hint"])


def test_a_row_that_cannot_be_rendered_is_parked_with_its_bytes(database: Database, broker: Broker) -> None:
    operator = operator_on(database, broker)
    operator.environment["CDC_ROUTES"] = f"{ROUTES}:fixed"
    with (
        PostgresProxy(database.server.port, replaces={_TUPLE: b"N\0\1t\0\0\0\1"}) as proxy,
        operator.running(DATABASE_URL=proxy.url(database.url)) as listener,
    ):
        wait_for_listener(database, timeout=30)
        database.execute("INSERT INTO roles VALUES (1, 'lost')")
        (parked,) = wait_until(lambda: operator.asks("parked", "list"), what="the change to be parked")
        assert listener.poll() is None
    assert parked["logged"]["after"] == [base64.b64encode(b"1").decode()]
    assert parked["change"]["after"] is None
    assert operator.types("parked", "list").stdout.count(parked["id"]) == 1
    again = operator.types("parked", "replay", parked["id"])
    assert (again.returncode, "stays parked" in again.stderr) == (1, True)
    assert "Traceback" not in again.stderr
    assert tasks_in(broker, "celery") == []
    assert "dropped" in operator.types("parked", "drop", parked["id"]).stdout
