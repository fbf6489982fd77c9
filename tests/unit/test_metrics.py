"""What the listener counts and decides for Prometheus and probes, and how its pages behave, without any server."""

from __future__ import annotations

import json
import re
import socket
import threading
import urllib.request
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from prometheus_client import CollectorRegistry, Gauge

from cdc_tasks.settings import SettingsError, load
from cdc_tasks.testing import row_change
from harness.server_process import free_port
from harness.waiting import wait_until
from listener.core.retry import Trouble
from listener.core.source import Batch, SourceLostError
from listener.daemon.settings import ListenerSettings, split_address
from listener.metrics.collector import Known
from listener.metrics.families import FAMILIES
from listener.metrics.health import DEAD_AFTER, STUCK_AFTER, Condition, Reason, Role
from listener.metrics.histogram import Histogram
from listener.metrics.meter import ENQUEUED, Meter, RouteCount
from listener.metrics.queue_ages import QueueAges
from listener.metrics.sampler import Sampler
from listener.metrics.server import MetricsAddressError, MetricsServer
from listener.router import BinlogRouter
from tests.support.metrics import Pages

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHECKOUT = Path(__file__).resolve().parents[2]
_METRIC = re.compile(r"\bcdc_[a-z_]+")
_OF_HISTOGRAMS = ("_bucket", "_sum", "_count")


# --- Names ----------------------------------------------------------------------------------------------


def test_the_page_of_the_docs_has_the_table_of_the_code() -> None:
    rows = re.findall(
        r"^\| `(cdc_\w+)` \| (\w+) \| (.*?) \| (.*) \|$", _read("docs/metrics.md"), re.MULTILINE
    )
    assert rows == [
        (name, each.kind, ", ".join(f"`{label}`" for label in each.labels) or "–", each.text)  # noqa: RUF001 - as in all tables
        for name, each in FAMILIES.items()
    ]


def test_names_keep_prometheus_rules() -> None:
    for name, family in FAMILIES.items():
        assert name.endswith("_total") is (family.kind == "counter"), name
        assert not re.search(r"_(ms|minutes|milliseconds|kb)(_|$)", name), name
        if family.kind == "histogram":
            assert name.endswith("_seconds")


@pytest.mark.parametrize(
    "file",
    ["deploy/prometheus/alerts.yml", "deploy/prometheus/alerts_test.yml", "deploy/grafana/cdc-tasks.json"],
)
def test_alerts_and_dashboard_have_no_name_that_is_not_served(file: str) -> None:
    names = {_without_suffix(name) for name in _METRIC.findall(_read(file))} - {
        "cdc_cache",
        "cdc_tasks",
    }  # a queue, and a program
    assert names
    assert names <= FAMILIES.keys()


def test_the_dashboard_leaves_no_number_out() -> None:
    dashboard = json.loads(_read("deploy/grafana/cdc-tasks.json"))
    told = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    assert {_without_suffix(name) for name in _METRIC.findall(told)} == FAMILIES.keys()


def test_the_docs_name_each_alert() -> None:
    alerts = re.findall(r"- alert: (\w+)", _read("deploy/prometheus/alerts.yml"))
    table = _read("docs/metrics.md").partition("## Alerts")[2]
    assert set(re.findall(r"`(CDC[A-Z][a-z]\w+)`", table)) == set(alerts)
    tested = re.findall(r'alertname="(\w+)"', _read("deploy/prometheus/alerts_test.yml"))
    assert sorted(tested) == sorted(alerts)


def _without_suffix(name: str) -> str:
    ends = [end for end in _OF_HISTOGRAMS if name.endswith(end) and name.removesuffix(end) in FAMILIES]
    return name.removesuffix(ends[0]) if ends else name


def _read(path: str) -> str:
    return (_CHECKOUT / path).read_text()


# --- The loop's counts ----------------------------------------------------------------------------------


def _changes(*events: str) -> list[Any]:
    return [_change(event, {"id": number}) for number, event in enumerate(events)]


def _change(event: str, row: dict[str, Any], **more: Any) -> Any:
    """Return a change whose kind is an object that others share, as a source's has it."""
    rows = {"before": row} if event == "delete" else {"after": row}
    return row_change("tickets", event, **rows, **more)


def _counted(router: BinlogRouter, changes: list[Any]) -> Meter:
    meter = Meter(router)
    fired = meter.fired(Batch(changes, "1"), router.tasks_for(changes))
    assert [each.route.task for each in fired] == [each.route.task for each in router.tasks_for(changes)]
    assert not meter.read  # the broker does not have it yet
    meter.confirmed("0")
    assert not meter.read
    meter.confirmed("1")
    return meter


def test_a_batch_counts_by_route_and_event_once_the_broker_has_it() -> None:
    router = BinlogRouter()
    all_of = router.register("public", "tickets", ["insert", "update"], "all").id
    inserts = router.register("public", "tickets", "insert", "inserts").id
    meter = _counted(router, _changes("insert", "insert", "update", "delete"))
    assert meter.read == {"insert": 2, "update": 1, "delete": 1}
    assert meter.published == {(all_of, "insert"): 2, (all_of, "update"): 1, (inserts, "insert"): 2}
    assert (meter.filtered, meter.parked, meter.batches) == ({}, {}, 1)
    assert meter.publishing.buckets[-1] == meter.queueing.buckets[-1] == ("+Inf", 1.0)


def test_what_when_leaves_out_is_filtered_and_what_raises_is_parked() -> None:
    router = BinlogRouter()
    some = router.register("public", "tickets", "insert", "some", when=lambda change: change.row["id"] > 1).id
    none = router.register("public", "tickets", "insert", "none", when=lambda change: change.row["absent"]).id
    meter = _counted(router, _changes("insert", "insert", "insert"))
    assert meter.published == {(some, "insert"): 1}
    assert meter.filtered == {(some, "insert"): 2}
    assert meter.parked == {(none, "insert"): 3}


def test_a_batch_that_all_fired_counts_as_one_that_was_looked_at_call_by_call() -> None:
    router = BinlogRouter()
    routes = [router.register("public", "tickets", "insert", f"task{number}").id for number in range(3)]
    changes = _changes(*["insert"] * 50)
    whole = _counted(router, changes)
    piecewise = Meter(router)
    chunk = cast("Any", object())  # with a chunk the calls are looked at
    piecewise.fired(Batch(changes, "1", chunk=chunk), router.tasks_for(changes))
    piecewise.confirmed("1")
    assert whole.published == piecewise.published == {(route, "insert"): 50 for route in routes}


def test_a_batch_that_comes_again_counts_once() -> None:
    router = BinlogRouter()
    router.register("public", "tickets", "insert", "task")
    meter, changes = Meter(router), _changes("insert")
    meter.fired(Batch(changes, "1"), router.tasks_for(changes))
    meter.lost(SourceLostError("gone"))
    assert meter.batch_at is None
    assert "source_lost" in meter.errors
    meter.fired(Batch(changes, "1"), router.tasks_for(changes))
    meter.confirmed("1")
    assert (meter.read["insert"], meter.losses, meter.batches) == (1, 1, 1)


def test_tasks_that_transactions_enqueue_share_a_label() -> None:
    from cdc_tasks.routing.route import Call, Origin
    from cdc_tasks.routing.router import enqueued_route

    meter = Meter(BinlogRouter())
    kinds = [("", f"any.{number}", "enqueued") for number in range(100)]
    calls = [Call(enqueued_route(kind), Origin(kind, (b"1", b"1")), b"") for kind in kinds]
    meter.fired(Batch((), "1"), calls)
    meter.confirmed("1")
    assert meter.published == {RouteCount(ENQUEUED, "enqueued"): 100}


def test_a_histogram_has_each_value_at_and_below_its_bounds() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 99.0):
        histogram.observe(value)
    assert histogram.buckets == [("1.0", 2.0), ("2.0", 3.0), ("+Inf", 4.0)]
    assert histogram.sum == 102.0


# --- How old what waits is ------------------------------------------------------------------------------


class _Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def test_the_id_of_a_task_says_when_its_change_was_committed() -> None:
    clock = _Clock()
    ages = QueueAges(0.0, clock)
    micros = int((clock.now - 90) * 1e6)
    for task_id in (f"6b02f19d5f9f4859-16B3748-{micros:X}-0-1a2b3c4d", f"0-1-17-{micros:X}-3+2-1a2b3c4d"):
        assert QueueAges(0.0, clock).of_head("q", 5, task_id) == pytest.approx(90, abs=0.01)
    assert ages.of_head("q", 0, None) == 0
    clock.now += 10
    assert ages.of_head("q", 5, f"a-1-{micros:X}-0-1a2b3c4d") == 10  # ten seconds ago the queue was empty


def test_a_message_without_such_an_id_is_as_old_as_it_has_been_seen_at_the_end() -> None:
    clock = _Clock()
    ages = QueueAges(0.0, clock)
    assert ages.of_head("q", 2, "b1c7") == 0
    clock.now += 30
    assert ages.of_head("q", 2, "b1c7") == 30
    assert ages.of_head("q", 2, "") == 0


def test_on_rabbitmq_the_age_follows_from_what_was_published() -> None:
    clock = _Clock()
    ages = QueueAges(0.0, clock)
    found = []
    for length, published in ((0, 100), (50, 150), (60, 170), (20, 170), (25, 180), (0, 180), (5, 190)):
        found.append(ages.of_length("q", length, published))
        clock.now += 10
    # 20 of 170 are left: they came after the look that found 150; 25 of 180 came after the same one.
    assert found == [0, 10, 20, 20, 30, 0, 10]


# --- Ready and live -------------------------------------------------------------------------------------


def _condition(**changed: Any) -> Condition:
    usual: dict[str, Any] = {"role": Role.LEADER, "idle": 0.1, "moved": 0.1, "waits": {}, "away": frozenset()}
    return Condition(**{**usual, **changed})


@pytest.mark.parametrize(
    ("changed", "reasons"),
    [
        ({}, []),
        ({"role": Role.STANDBY, "idle": None}, []),
        ({"role": Role.STANDBY, "idle": None, "away": frozenset({"database"})}, [Reason.DATABASE_AWAY]),
        ({"role": Role.STARTING, "idle": None}, [Reason.STARTING]),
        ({"idle": STUCK_AFTER + 1}, [Reason.READER_STUCK]),
        ({"idle": STUCK_AFTER + 1, "waits": {"broker": 60.0}}, [Reason.BROKER_AWAY]),
        ({"waits": {"broker": 0.1}}, []),
        ({"idle": 60.0, "has_full_queue": True}, [Reason.QUEUE_FULL]),
        ({"idle": 60.0, "is_paused": True}, [Reason.STREAM_PAUSED]),
        ({"away": frozenset({"cache"})}, [Reason.CACHE_AWAY]),
    ],
)
def test_what_makes_it_not_ready(changed: dict[str, Any], reasons: list[Reason]) -> None:
    assert list(_condition(**changed).reasons) == reasons


def test_only_a_loop_that_does_not_move_is_dead() -> None:
    assert _condition(idle=DEAD_AFTER * 10, moved=1.0, waits={"broker": 900.0}).is_live
    assert _condition(role=Role.STANDBY, idle=None, moved=float("inf")).is_live
    assert not _condition(idle=DEAD_AFTER + 1, moved=DEAD_AFTER + 1).is_live


class _Idle:
    """A monitor that reads."""

    is_standby = False
    silence = 0.0


class _Waiting:
    what = "broker"
    losses = 1
    errors: dict[str, float] = {}  # noqa: RUF012 - never written
    moved_at = 0.0
    trouble = Trouble("broker_away", 0.0)


def _known(meter: Meter, *retries: Any) -> Known:
    answer = SimpleNamespace(has_full_queue=False)
    asked = [Sampler(name, lambda: answer, lambda: None) for name in ("source", "store", "queues", "workers")]
    database, store, queues, workers = cast("Any", asked)
    return Known(
        meter=meter,
        monitor=cast("Any", _Idle()),
        retries=retries,
        source=database,
        store=store,
        queues=queues,
        workers=workers,
        store_is_broker=True,
    )


def test_a_listener_is_a_leader_from_its_first_batch_on() -> None:
    known = _known(Meter(BinlogRouter()))
    assert list(known.condition.reasons) == [Reason.STARTING]
    known.meter.moved()
    assert (known.role, known.condition.reasons) == (Role.LEADER, ())
    known.meter.batch_at = monotonic() - STUCK_AFTER - 1
    assert list(known.condition.reasons) == [Reason.READER_STUCK]
    assert list(_known(known.meter, _Waiting()).condition.reasons) == [Reason.BROKER_AWAY]


def test_an_answer_is_known_until_the_server_fails_twice_and_again_once_it_answers() -> None:
    answers: list[int | Exception] = [1, OSError(), 2, SourceLostError("no"), SourceLostError("no"), 3]

    def read() -> int:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    sampler = Sampler("source", read, lambda: None)
    seen = []
    for _ in range(4):
        sampler._look()
        seen.append((sampler.value, sampler.last))
    assert seen == [(1, 1), (2, 2), (None, 2), (3, 3)]
    assert list(sampler.errors) == ["source_lost"]


# --- The pages ------------------------------------------------------------------------------------------


def _server(host: str = "127.0.0.1", port: int | None = None) -> MetricsServer:
    meter = Meter(BinlogRouter())
    meter.moved()
    registry = CollectorRegistry()
    Gauge("one", "A number", registry=registry).set(1)
    return MetricsServer(host, free_port() if port is None else port, _known(meter), registry)


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    with _server() as server:
        yield server


def _pages(server: MetricsServer) -> Pages:
    return Pages(int(server.url.rpartition(":")[2]))


def test_the_pages_answer_and_others_do_not_exist(server: MetricsServer) -> None:
    pages = _pages(server)
    assert pages.get("/livez") == (200, "live\n")
    assert pages.ready == (200, "ready, leader\n")
    assert "one 1.0" in pages.get("/metrics?debug=1")[1]
    assert pages.get("/")[0] == pages.get("/metrics/../etc/passwd")[0] == 404


def test_a_taken_port_is_an_error_that_says_what_to_do(server: MetricsServer) -> None:
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(MetricsAddressError) as raised:
        _server(port=port)
    assert f"CDC_METRICS_ADDRESS=127.0.0.1:{port} cannot be used: Address already in use" in str(raised.value)
    assert raised.value.hint is not None
    assert f"sport = :{port}" in raised.value.hint
    with pytest.raises(MetricsAddressError, match=r"192\.0\.2\.1"):
        _server("192.0.2.1")


def test_it_listens_on_ipv6_too() -> None:
    with _server("::1") as server:
        assert server.url.startswith("http://[::1]:")
        assert Pages(int(server.url.rpartition(":")[2]), "[::1]").get("/livez") == (200, "live\n")


def test_the_pages_come_back_when_their_thread_fails(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError

    pages = _pages(server)
    with monkeypatch.context() as broken:
        broken.setattr(server._server, "service_actions", fails)
        assert pages.get("/livez")  # serve_forever ends with its error
    wait_until(lambda: pages.get("/livez") == (200, "live\n"), what="the page")


def test_a_page_that_fails_answers_and_names_no_value(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Known, "condition", property(lambda _: 1 / 0))
    assert _pages(server).ready == (500, "ZeroDivisionError\n")


def test_clients_that_say_nothing_leave_room_for_others(server: MetricsServer) -> None:
    address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    with socket.create_connection(address), socket.create_connection(address):
        assert _pages(server).get("/livez") == (200, "live\n")


def test_a_scrape_during_the_end_is_no_error() -> None:
    server = _server()
    pages = _pages(server)
    over = threading.Event()

    def scrape() -> None:
        while not over.is_set():
            pages.get("/metrics")

    thread = threading.Thread(target=scrape)
    with server:
        thread.start()
        wait_until(lambda: pages.get("/metrics")[0] == 200, what="a scrape")
    over.set()
    thread.join()
    assert pages.get("/metrics") == (0, "")
    with _server(port=int(server.url.rpartition(":")[2])):  # as after a reload
        assert pages.get("/livez") == (200, "live\n")


def test_prometheus_may_ask_for_openmetrics(server: MetricsServer) -> None:
    asked = urllib.request.Request(
        f"{server.url}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    )
    with urllib.request.urlopen(asked, timeout=60) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        assert answer.read().endswith(b"# EOF\n")


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("127.0.0.1:9187", ("127.0.0.1", 9187)),
        ("[::1]:9187", ("::1", 9187)),
        ("localhost:1", ("localhost", 1)),
    ],
)
def test_an_address_is_host_and_port(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize(
    "address",
    ["9187", ":9187", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "::1:9187", "h:x"],
)
def test_a_malformed_address_is_told_with_its_value(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://user@host/name")
    monkeypatch.setenv("CDC_METRICS_ADDRESS", address)
    with pytest.raises(SettingsError) as raised:
        load(ListenerSettings)
    assert f"CDC_METRICS_ADDRESS={address!r}" in str(raised.value)
    assert "[::1]:9187" in str(raised.value)


def test_times_of_batches_are_those_of_their_oldest_change() -> None:
    router = BinlogRouter()
    router.register("public", "tickets", "insert", "task")
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    old, new = _changes("insert", "insert")
    meter = Meter(router)
    changes = [_change("insert", {"id": 1}, committed_at=an_hour_ago), new, old]
    meter.fired(Batch(changes, "1"), router.tasks_for(changes))
    meter.confirmed("1")
    assert meter.queueing.sum == pytest.approx(3600, abs=60)
    assert all(lower[1] <= upper[1] for lower, upper in pairwise(meter.queueing.buckets))
