"""A Redis user without a permission: a worker refuses to start, `check` reports it, with the command that grants it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis

from cdc_tasks.broker.redis.acl import missing_for_listener, missing_for_worker
from harness.embedded_servers import ValkeyServer
from harness.machine_servers import RedisServer
from harness.waiting import at_most
from harness.worker import Worker
from tests.support.helpdesk import HelpDesk
from tests.support.operators import Operator
from tests.support.warm_python import WARM

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHECKOUT = Path(__file__).resolve().parents[3]
_QUEUES = ["celery", "cdc_bulk"]
_TOO_LITTLE = {
    "no scripts": ("~* &* +@all -eval -evalsha", "+eval +evalsha"),
    "no transactions": ("~* &* +@all -multi", "+multi"),
    "keys of a stock worker": ("~celery ~_kombu* ~unacked* &* +@all", "~cdc:* ~cdc_bulk"),
    "no channels": ("resetchannels ~* +@all", "&*"),
    "no clock, and no sorted sets": ("~* &* +@all -time -zrangebyscore", "+time +zrangebyscore"),
    "no moving": ("~* &* +@all -brpoplpush", "+brpoplpush"),
}


@pytest.fixture(params=[ValkeyServer, RedisServer], scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ValkeyServer]:
    with request.param() as server:
        yield server


def _user(server: ValkeyServer, rules: str) -> redis.Redis:
    with redis.Redis.from_url(server.url) as client:
        client.execute_command("ACL", "SETUSER", "anna", "reset", "on", ">secret", *rules.split())
    return redis.Redis(port=server.port, username="anna", password="secret")


@pytest.mark.parametrize("case", _TOO_LITTLE)
def test_a_missing_permission_is_reported_with_the_command_that_grants_it(
    server: ValkeyServer, case: str
) -> None:
    rules, needed = _TOO_LITTLE[case]
    with _user(server, rules) as user, redis.Redis.from_url(server.url) as administrator:
        missing = missing_for_worker(user, _QUEUES)
        assert missing is not None
        assert missing.hint == f"ACL SETUSER anna {needed}"
        administrator.execute_command(*missing.hint.split())
        assert missing_for_worker(user, _QUEUES) is None
        assert administrator.keys("*") == []


def test_a_user_who_may_all_lacks_nothing_and_queues_stay_as_they_are(server: ValkeyServer) -> None:
    with _user(server, "~* &* +@all") as user:
        user.lpush("cdc_bulk", "one", "two")
        assert missing_for_worker(user, _QUEUES, prefix="house:") is None
        assert missing_for_listener(user, _QUEUES) is None
        assert user.lrange("cdc_bulk", 0, -1) == [b"two", b"one"]
        user.delete("cdc_bulk")


def test_a_worker_refuses_to_start_and_works_with_the_permission(helpdesk: HelpDesk) -> None:
    server, client = helpdesk.broker.server, helpdesk.broker.client
    client.execute_command(
        "ACL", "SETUSER", "anna", "reset", "on", ">secret", "~*", "&*", "+@all", "-evalsha"
    )
    url = f"redis://anna:secret@127.0.0.1:{server.port}/0"
    environment = {**helpdesk.environment, "CELERY_BROKER_URL": url}
    try:
        refused = WARM.run(
            [sys.executable, "-m", "celery", "-A", "cdc_tasks", "worker", "-c1"],
            cwd=_CHECKOUT,
            env={"PATH": "/usr/bin:/bin", **environment},
            timeout=at_most(60),
        )
        assert refused.returncode == 1
        assert "ACL SETUSER anna +evalsha" in refused.stderr
        assert "Traceback" not in refused.stderr
        client.execute_command("ACL", "SETUSER", "anna", "+evalsha")
        with Worker(environment) as worker:
            assert worker.stop() == 0
    finally:
        client.execute_command("ACL", "DELUSER", "anna")


def test_check_names_what_the_listener_lacks(helpdesk: HelpDesk) -> None:
    server, client = helpdesk.broker.server, helpdesk.broker.client
    client.execute_command(
        "ACL", "SETUSER", "anna", "reset", "on", ">secret", "~*", "&*", "+@all", "-multi", "-watch"
    )
    try:
        operator = Operator(
            DATABASE_URL=helpdesk.database.url,
            CELERY_BROKER_URL=f"redis://anna:secret@127.0.0.1:{server.port}/0",
            CACHE_URL=helpdesk.broker.cache_url,
        )
        found = {each["what"]: each for each in operator.asks("check")["findings"]}
        assert found["broker's rights"]["state"] == "problem"
        assert found["broker's rights"]["hint"] == "ACL SETUSER anna +multi +watch"
    finally:
        client.execute_command("ACL", "DELUSER", "anna")
