"""A worker of somebody else's app with `cdc_tasks.install`, on Redis and on RabbitMQ."""

from __future__ import annotations

import json
import os
import sys
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery

from benchmarks.readings import proportional_memory
from harness.waiting import wait_until
from harness.worker import Worker
from tests.support.warm_python import WARM

if TYPE_CHECKING:
    from tests.conftest import Broker

_APPLICATION = "tests.support.tasks.shop"


@pytest.fixture(params=["redis", "rabbitmq"])
def broker_url(request: pytest.FixtureRequest, broker: Broker) -> str:
    if request.param == "redis":
        return broker.url
    url: str = request.getfixturevalue("rabbitmq_server").url
    return url


def _environment(broker: Broker, broker_url: str, **more: str) -> dict[str, str]:
    # What other programs mean by these is nothing to the app.
    strangers = {"DATABASE_URL": "nonsense", "CACHE_URL": "locmemcache://"}
    return {"SHOP_BROKER": broker_url, "SHOP_NOTES": broker.cache_url, **strangers, **more}


@pytest.mark.versions
def test_tasks_finish_and_failures_are_kept(broker: Broker, broker_url: str) -> None:
    environment = _environment(broker, broker_url, CDC_CACHE_URL=broker.cache_url)
    with (
        Worker(environment, application=_APPLICATION) as worker,
        Celery(broker=broker_url, set_as_current=False) as app,
    ):
        for name in ("kills", "waits", "fails", "unknown"):
            app.send_task(f"shop.{name}", queue="shop", task_id=name)
        notes = broker.cache
        wait_until(
            lambda: int(notes.hget("shop tries", "kills") or 0) > 1,
            timeout=90,
            what="the task of a dead process",
        )
        wait_until(lambda: notes.hget("shop tries", "waits") == b"2", timeout=60, what="the second try")
        wait_until(lambda: notes.hlen("cdc:dead-letters") == 2, timeout=60, what="the dead letters")
        assert set(notes.hkeys("cdc:dead-letters")) == {b"fails", b"unknown"}
        assert (
            int(notes.hget("shop called", "shop.waits") or 0) == 2
        )  # its own base class is called each time
        lacks = [line for line in worker.log.splitlines() if "settings_weaken_guarantees" in line]
        assert len(lacks) == 1
        assert "shop.waits: acks_late is False" in lacks[0]
        assert "cdc_tasks.deliver" not in worker.log
        assert "installed_after_tasks" not in worker.log


def test_without_a_redis_the_worker_says_what_it_leaves_out(rabbitmq_server: Any, broker: Broker) -> None:
    with Worker(_environment(broker, rabbitmq_server.url), application=_APPLICATION) as worker:
        assert "CDC_CACHE_URL is not set, and the broker is not Redis" in worker.log
        with Celery(broker=rabbitmq_server.url, set_as_current=False) as app:
            app.send_task("shop.fails", queue="shop", task_id="fails")
        wait_until(lambda: "ValueError" in worker.log, timeout=60, what="the error")
        assert not broker.cache.hlen("cdc:dead-letters")
        assert "cdc_health" not in worker.log


def test_a_worker_says_that_install_came_after_tasks(broker: Broker) -> None:
    environment = _environment(broker, broker.url, SHOP_IS_LATE="yes")
    with Worker(environment, application=_APPLICATION) as worker:
        (line,) = (each for each in worker.log.splitlines() if "installed_after_tasks" in each)
        assert "shop.early" in line
        assert "number=1" in line
        assert "Call cdc_tasks.install(app) right after creating the app" in line


def test_a_worker_grows_by_at_most_20_mb(broker: Broker, cold_workers: None) -> None:
    """Both run at once, so that they share the same pages with each other and with all else on the machine."""
    urls = [broker.server.url_of(number) for number in (5, 6)]
    ours, stock = (_environment(broker, url, CDC_CACHE_URL=broker.cache_url) for url in urls)
    with (
        Worker(ours, application=_APPLICATION) as installed,
        Worker({**stock, "SHOP_IS_STOCK": "yes"}, application=_APPLICATION) as other,
    ):
        for url in urls:
            with Celery(broker=url, set_as_current=False) as app:
                for _ in range(8):
                    app.send_task("shop.notes", [url], queue="shop")
        notes = broker.cache
        wait_until(
            lambda: [int(notes.hget("shop notes", url) or 0) for url in urls] == [8, 8], what="the tasks"
        )
        grown = [
            proportional_memory(installed.process.pid) - proportional_memory(other.process.pid)
            for _ in range(5)
        ]
        assert "cdc_health" in installed.log
        assert "cdc_health" not in other.log
    assert median(grown) <= 20


def test_no_process_of_a_worker_looks_through_its_modules_for_garbage(
    broker: Broker, cold_workers: None
) -> None:
    """All tasks would wait for a tenth of a second meanwhile."""
    environment = _environment(broker, broker.url, SHOP_COUNTS="yes")
    with Worker(environment, application=_APPLICATION) as worker:
        with Celery(broker=broker.url, set_as_current=False) as app:
            app.send_task("shop.counts", queue="shop")
        wait_until(lambda: broker.cache.hlen("shop counts"), timeout=60, what="the task")
        assert worker.stop() == 0
    counts = broker.cache.hgetall("shop counts")
    assert set(counts) == {b"process of the pool", b"main process"}
    assert min(map(int, counts.values())) > 50_000, counts


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_a_pool_that_is_not_fit_has_kombus_transport(broker: Broker, pool: str) -> None:
    environment = _environment(broker, broker.url)
    with Worker(environment, f"--pool={pool}", application=_APPLICATION) as worker:
        assert "So this worker uses kombu's own transport" in worker.log
        with Celery(broker=broker.url, set_as_current=False) as app:
            app.send_task("shop.fails", queue="shop", task_id="fails")
        wait_until(
            lambda: broker.client.hexists("cdc:dead-letters", "fails"), timeout=60, what="the dead letter"
        )


def test_all_that_is_kept_in_the_broker_has_the_apps_prefix(broker: Broker) -> None:
    client = broker.client
    client.acl_setuser(
        "team", enabled=True, passwords=["+team"], keys=["team:*"], channels=["*"], commands=["+@all"]
    )
    url = broker.url.replace("://", "://team:team@")  # may use no other keys
    environment = _environment(broker, url, SHOP_PREFIX="team:")
    options = {"global_keyprefix": "team:"}
    try:
        with (
            Worker(environment, application=_APPLICATION) as worker,
            Celery(broker=broker.url, set_as_current=False) as app,
        ):
            app.conf.broker_transport_options = options
            for name in ("kills", "fails", "unknown"):
                app.send_task(f"shop.{name}", queue="shop", task_id=name)
            wait_until(lambda: client.hlen("team:cdc:dead-letters") == 2, timeout=90, what="the dead letters")
            wait_until(
                lambda: int(broker.cache.hget("shop tries", "kills") or 0) > 1,
                timeout=90,
                what="the task of a dead process",
            )
            shown = _cli(environment, "dead-letters", "list", "--json")
            assert {each["id"] for each in json.loads(shown)} == {"fails", "unknown"}
            assert json.loads(_cli(environment, "health", "--any", "--json"))["dead_letters"] == 2
            _cli(environment, "dead-letters", "drop", "fails")
            assert client.hkeys("team:cdc:dead-letters") == [b"unknown"]
            assert "NOPERM" not in worker.log
        assert [key for key in client.scan_iter() if not key.startswith(b"team:")] == []
    finally:
        client.acl_deluser("team")


def _cli(environment: dict[str, str], *words: str) -> str:
    command = [sys.executable, "-m", "cdc_tasks", "-A", _APPLICATION, *words]
    done = WARM.run(command, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout
