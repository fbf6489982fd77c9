"""What a listener serves to Prometheus and to probes, while it runs and while something is wrong.

One listener serves all tests of the file, in their order: a start of it takes longer than most of them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis

from harness.embedded_servers import PostgresServer, ValkeyServer
from harness.listener_process import ListenerProcess
from harness.machine_servers import PrometheusServer, find_program
from harness.server_process import free_port
from harness.waiting import Deadline, wait_until
from listener.metrics.families import FAMILIES
from tests.conftest import Database, fresh_database
from tests.support.metrics import Pages
from tests.support.operators import Operator

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHECKOUT = Path(__file__).resolve().parents[2]
_DEPLOY = _CHECKOUT / "deploy"
_ROUTES = """
import time
from pathlib import Path
from listener.router import BinlogRouter
def stuck(change):
    while Path(change.row["file"]).exists():
        time.sleep(0.1)
    return False
router = BinlogRouter()
router.register("public", "roles", ["insert", "update"], "tests.all", queue="cdc_bulk")
router.register("public", "roles", ["insert", "update"], "tests.some", when=lambda c: c.row["name"] != "quiet")
router.register("public", "roles", "insert", "tests.first", args=lambda c: [c.row["name"][0]], queue="cdc_cache")
router.register("public", "stuck", "insert", "tests.stuck", when=stuck)
"""


@dataclass(frozen=True, kw_only=True)
class World:
    database: Database
    valkey: ValkeyServer
    pages: Pages
    environment: dict[str, str]
    listener: ListenerProcess

    @contextmanager
    def another(self) -> Iterator[tuple[ListenerProcess, Pages]]:
        """Start a second listener of the same name."""
        pages = Pages(free_port())
        with ListenerProcess({**self.environment, "CDC_METRICS_ADDRESS": pages.address}) as listener:
            yield listener, pages

    def waits_for(self, number: float | None, name: str, **labels: str) -> None:
        """Wait until this is the sum of these samples."""
        deadline = Deadline(20)
        while (found := self.pages.number(name, **labels)) != number:
            deadline.check(f"{name} {labels} is {found}, not {number}\n{self.listener.log[-2000:]}")
            time.sleep(0.1)

    def waits_for_ready(self, status: int, text: str = "") -> None:
        wait_until(
            lambda: (found := self.pages.ready)[0] == status and text in found[1],
            timeout=30,
            what=f"/readyz to say {status} {text}",
        )


@pytest.fixture(scope="module")
def world(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Yield a listener that reads, with a broker that a test may stop."""
    home = tmp_path_factory.mktemp("routes")
    (home / "metrics_routes.py").write_text(_ROUTES)
    pages = Pages(free_port())
    with ExitStack() as stack:
        database = stack.enter_context(fresh_database(postgres_server))
        database.execute(
            "CREATE TABLE roles (id int PRIMARY KEY, name text); CREATE TABLE stuck (file text PRIMARY KEY)"
        )
        valkey = stack.enter_context(ValkeyServer())
        environment = {
            "DATABASE_URL": database.url,
            "CELERY_BROKER_URL": valkey.url,
            "CACHE_URL": valkey.url_of(1),
            "CDC_NAME": database.name,
            "CDC_ROUTES": "metrics_routes:router",
            "CDC_METRICS_ADDRESS": pages.address,
            "PYTHONPATH": f"{home}{os.pathsep}{_CHECKOUT}",
        }
        listener = stack.enter_context(ListenerProcess(environment))
        listener.wait_for("streaming", timeout=40)
        yield World(database=database, valkey=valkey, pages=pages, environment=environment, listener=listener)


def test_numbers_and_probes_follow_what_happens(world: World) -> None:
    pages = world.pages
    world.waits_for_ready(200, "ready, leader")
    assert pages.get("/livez") == (200, "live\n")
    served = {name for name in pages.families if not name.startswith("process_")}
    assert served == FAMILIES.keys()

    world.database.execute("INSERT INTO roles VALUES (1, 'a'), (2, 'quiet'), (3, NULL)")
    world.database.execute("UPDATE roles SET name = 'b' WHERE id = 1")
    world.waits_for(1, "cdc_changes_read_total", event="update")
    world.waits_for(3, "cdc_changes_read_total", event="insert")
    world.waits_for(3, "cdc_changes_published_total", task="tests.all", event="insert")
    world.waits_for(2, "cdc_changes_published_total", task="tests.some", event="insert")
    world.waits_for(1, "cdc_changes_published_total", task="tests.some", event="update")
    world.waits_for(1, "cdc_changes_filtered_total", task="tests.some", event="insert")
    world.waits_for(1, "cdc_changes_parked_total", task="tests.first", event="insert")
    world.waits_for(4, "cdc_queue_messages", queue="cdc_bulk")
    world.waits_for(1, "cdc_parked_changes")
    world.waits_for(1, "cdc_server_up", server="database")
    world.waits_for(0, "cdc_lag_bytes")
    batches = pages.number("cdc_batches_total")
    assert batches
    assert batches == pages.number("cdc_publish_duration_seconds_count")
    assert batches == pages.number("cdc_commit_to_queue_seconds_count")
    assert (pages.number("cdc_queue_oldest_message_age_seconds", queue="cdc_bulk") or 0) > 0
    text = pages.get("/metrics")[1]
    assert not [secret for secret in (world.database.url, world.valkey.url, "quiet") if secret in text]


def test_a_port_that_is_taken_ends_the_start_and_says_so(world: World) -> None:
    operator = Operator(**world.environment, CDC_LOG_FORMAT="text")
    refused = operator.types("run")
    assert refused.returncode == 1
    assert (
        f"CDC_METRICS_ADDRESS={world.pages.address} cannot be used: Address already in use" in refused.stderr
    )
    assert f"ss -ltnp 'sport = :{world.pages.address.rpartition(':')[2]}'" in refused.stderr


def test_prometheus_knows_a_parked_change_and_a_dead_letter(world: World) -> None:
    """`make chaos ARGS="--target alerts"` has ten incidents with the waits of the real rules."""
    world.waits_for_ready(200)
    operator = Operator(**world.environment)
    _forget_parked(world)
    rules = _DEPLOY / "prometheus" / "alerts.yml"
    with PrometheusServer(rules=rules, targets=[world.pages.address]) as prometheus:
        wait_until(lambda: prometheus.query('up{job="cdc-tasks"} == 1'), what="a scrape", timeout=30)
        wait_until(lambda: prometheus.query("cdc_parked_changes == 0"), what="no parked change", timeout=30)
        wait_until(lambda: not prometheus.firing, what="no alert", timeout=30)
        world.database.execute("INSERT INTO roles VALUES (7, NULL)")
        wait_until(lambda: prometheus.firing == {"CDCParkedChanges"}, what="the alert", timeout=60)
        assert operator.types("status").returncode == 3
        assert operator.types("status", "--reading").returncode == 0
        _forget_parked(world)
        _fail_a_task(world)
        wait_until(lambda: prometheus.firing == {"CDCDeadLetters"}, what="the other alert", timeout=60)
        for expression in _expressions_of_the_dashboard():
            prometheus.query(expression.replace("$listener", ".*"))


def _forget_parked(world: World) -> None:
    with redis.Redis.from_url(world.valkey.url) as broker:
        broker.delete(f"cdc:{world.database.name}:parked")


def _fail_a_task(world: World) -> None:
    with redis.Redis.from_url(world.valkey.url_of(1)) as cache:
        cache.hset("cdc:dead-letters:by-task", "shop.mail", 1)


def _expressions_of_the_dashboard() -> Iterator[str]:
    dashboard = json.loads((_DEPLOY / "grafana" / "cdc-tasks.json").read_text())
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel["targets"])


def test_the_rules_of_the_alerts_do_what_they_say() -> None:
    promtool = str(find_program("promtool", "CDC_TEST_PROMTOOL"))
    tested = subprocess.run(
        [promtool, "test", "rules", "alerts_test.yml"],
        cwd=_DEPLOY / "prometheus",
        capture_output=True,
        text=True,
        check=False,
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_a_stall_shows_and_is_forgotten_when_it_is_over(world: World, tmp_path: Path) -> None:
    world.waits_for_ready(200)
    world.valkey.kill()
    try:
        world.waits_for_ready(503, "broker_away")
        world.waits_for(0, "cdc_server_up", server="broker")
        world.waits_for(1, "cdc_server_up", server="database")
        world.waits_for(None, "cdc_parked_changes")  # what is not known is not 0
        assert world.pages.get("/livez")[0] == 200
    finally:
        world.valkey.start()
    world.waits_for_ready(200, "leader")
    assert (world.pages.number("cdc_reconnects_total", server="broker") or 0) >= 1
    assert world.pages.number("cdc_last_error_timestamp_seconds", code="broker_away")

    # A predicate that does not return; and a broker that hangs: it refuses nothing, and does not answer.
    (tmp_path / "stuck").touch()
    world.database.execute("INSERT INTO stuck VALUES (%s)", str(tmp_path / "stuck"))
    os.kill(world.valkey.pid, signal.SIGSTOP)
    try:
        world.waits_for_ready(503, "broker_away, reader_stuck")
        world.waits_for(1, "cdc_not_ready", reason="reader_stuck")
    finally:
        os.kill(world.valkey.pid, signal.SIGCONT)
        (tmp_path / "stuck").unlink()
    world.waits_for_ready(200, "leader")
    world.waits_for(1, "cdc_changes_filtered_total", task="tests.stuck")


def test_a_standby_is_ready_and_serves_on_when_it_takes_over(world: World) -> None:
    world.waits_for_ready(200)
    with world.another() as (standby, its_pages):
        standby.wait_for("standby", timeout=40)
        wait_until(lambda: its_pages.ready == (200, "ready, standby\n"), what="a healthy standby", timeout=30)
        assert its_pages.number("cdc_role", role="standby") == 1
        assert its_pages.number("cdc_role", role="leader") == 0
        # A leader that stops takes its page along; the standby takes over, and keeps its own.
        assert world.listener.stop() == 0
        assert world.pages.ready == (0, "")
        wait_until(lambda: its_pages.ready == (200, "ready, leader\n"), what="the new leader", timeout=60)
