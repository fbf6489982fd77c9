"""The page in `docs/` and its charts, from the results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from string import Template
from typing import Any

from benchmarks import binlog_report, charts
from benchmarks.debezium import VERSIONS
from benchmarks.latency import BINS
from benchmarks.runners import VERSIONS as RUNNER_VERSIONS
from benchmarks.tables import ratio, table

__all__ = ["keep", "write"]

_PAGE = Path(__file__).with_name("report.md")
_OURS = "cdc-tasks"
_QUICK = "**These are short runs (`--quick`), which only show that everything works.**\n\n"
_WIDTHS = {"narrow": "3 columns", "tickets": "9 columns", "wide": "41 columns"}

Results = Mapping[str, Any]


def write(results: Results, directory: Path) -> None:
    """Write `benchmarks.md`, and beside it the directory `benchmarks/` with the charts and the results."""
    pictures = keep(results, directory)
    for name, picture in _charts(results).items():
        (pictures / f"{name}.svg").write_text(picture)
    page = Template(_PAGE.read_text()).substitute(_facts(results))
    (directory / "benchmarks.md").write_text(page)


def keep(results: Results, directory: Path) -> Path:
    """Write the results to the directory of the charts, and return that directory."""
    pictures = directory / "benchmarks"
    pictures.mkdir(parents=True, exist_ok=True)
    (pictures / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    return pictures


def _charts(results: Results) -> dict[str, str]:
    throughput = {name: each["rate"] for name, each in results["throughput"].items()}
    latency = {"queue": "into the queue, 1,000 a second", "task": "until its task runs, 200 a second"}
    return {
        "throughput": charts.bars(
            "Changes a second (9 columns, transactions of 100)", throughput, unit="/s", best=_OURS
        ),
        "width": charts.columns(
            "Changes a second by the width of a row",
            {_WIDTHS[table]: _rates(found) for table, found in results["width"].items()},
            unit="/s",
            below="transactions of 100 rows",
        ),
        "transactions": charts.columns(
            "Changes a second by the size of a transaction",
            {f"{int(size):,}": _rates(found) for size, found in results["transactions"].items()},
            unit="/s",
            below="rows in a transaction",
        ),
        "memory": charts.line(
            "The listener's memory at its peak",
            {f"{int(size):,}": value for size, value in results["memory"]["peak"].items()},
            unit="MB",
            below="rows in a transaction",
            limit=100,
        ),
        **{
            f"latency-{what}": charts.columns(
                f"From commit {title}", _bins(results["latency"][what]), unit="%", below="milliseconds, up to"
            )
            for what, title in latency.items()
        },
        **binlog_report.pictures(results),
    }


def _rates(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the rates, ours first, so that it has the first colour."""
    return {name: found[name]["rate"] for name in sorted(found, key=lambda name: name != _OURS)}


def _bins(latency: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    counts = latency["histogram"]
    last = max(place for place, count in enumerate(counts) if count)
    shares = [100 * count / latency["count"] for count in counts]
    names = [*(f"{end:g}" for end in BINS[:-1]), "more"]
    return {name: {"share": share} for name, share in zip(names[: last + 1], shares, strict=False)}


def _facts(results: Results) -> dict[str, str]:
    about = results["about"]
    return {
        "machine": about["machine"],
        "date": about["date"],
        "postgres": about["postgres"],
        "caution": _QUICK if about["quick"] else "",
        "rows": f"{about['rows']:,}",
        "rounds": str(about["rounds"]),
        "debezium": ", ".join(version.replace("==", " ") for version in VERSIONS),
        "throughput_table": _throughput_table(results["throughput"]),
        "width_table": _sweep_table("columns", results["width"], lambda table: _WIDTHS[table]),
        "transactions_table": _sweep_table("rows", results["transactions"], lambda size: f"{int(size):,}"),
        "keys_table": table(
            ["", "changes/s", "of it", "own CPU, µs", "Redis' CPU, µs"],
            [
                [
                    name,
                    f"{each['rate']:,}",
                    f"{each['ratio']:.2f}",
                    f"{each['cpu']:.1f}",
                    f"{each['redis_cpu']:.1f}",
                ]
                for name, each in results["keys"].items()
            ],
        ),
        "rabbitmq_table": _rabbitmq_table(results["rabbitmq"]),
        "latency_table": _latency_table(
            results["latency"], {"queue": "commit to queue, 1,000/s", "task": "commit to task, 200/s"}
        ),
        "isolation_table": _latency_table(
            results["isolation"],
            {"emptied": "the other queue is emptied", "blocked": "nobody empties the other queue"},
        ),
        "failing_key_table": _latency_table(
            results["failing_key"],
            {"succeeds": "the fiftieth key's tasks succeed", "fails": "they always fail"},
        ),
        "start": f"{median(results['latency']['start']):.2f}",
        "memory_table": table(
            ["rows in a transaction", "MB at the peak"],
            [[f"{int(size):,}", f"{value:.0f}"] for size, value in results["memory"]["peak"].items()],
        ),
        "binlog": binlog_report.section(results),
        "idle": f"{results['memory']['idle']:.2f}",
        "grouping_table": table(
            ["", "changes", "written in", "tasks"],
            [
                [name, f"{each['changes']:,}", f"{each['seconds']:.1f} s", f"{each['tasks']:,}"]
                for name, each in results["grouping"].items()
            ],
        ),
        "runners_tables": "\n\n".join(
            _runners_table(title, found) for title, found in results["runners"].items()
        ),
        "runner_versions": ", ".join(version.replace("==", " ") for version in RUNNER_VERSIONS),
        "workers_load": f"{results['about_workers']['load']} on {results['about_workers']['cores']} cores",
        "workers_date": results["about_workers"]["date"],
        "tickets": f"{results['messages']['messages'] // 3:,}",
        "messages_table": table(
            ["messages", "messages/s", "seconds", "CPU, ms a message", "retries", "out of order"],
            [
                [
                    f"{results['messages']['messages']:,}",
                    f"{results['messages']['per_second']:,.0f}",
                    f"{results['messages']['seconds']:,.0f}",
                    f"{results['messages']['cpu']:.1f}",
                    f"{results['messages']['retries']:,}",
                    f"{results['messages']['out_of_order']:,}",
                ]
            ],
        ),
        "rate_limited_load": f"{max(each['load'] for each in results['rate_limited']):.0f}",
        "rate_limited_seconds": f"{results['rate_limited'][0]['seconds']:.0f}",
        "rate_limited_table": _rate_limited_table(results["rate_limited"]),
        "workers_table": table(
            ["", "tasks/s", "rows/s"],
            [
                [name, f"{each['tasks_per_second']:,}", f"{each['rows_per_second']:,}"]
                for name, each in results["workers"].items()
            ],
        ),
    }


def _runners_table(title: str, found: Mapping[str, Any]) -> str:
    ours = found[_OURS]["rate"]
    return table(
        [title, "tasks/s", "slowest to fastest", "cdc-tasks is", "CPU, ms a task"],
        [
            [
                f"**{name}**" if name == _OURS else name,
                f"{each['rate']:,}",
                f"{min(each['rates']):,} to {max(each['rates']):,}",
                "" if name == _OURS else f"{ratio(ours / each['rate'])} x",
                f"{each['cpu']:.2f}",
            ]
            for name, each in found.items()
        ],
    )


def _rate_limited_table(found: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for burst in found:
        for what in ("idle", "arriving", "waiting"):
            part = burst[what]
            is_first = what == "idle"
            rows.append(
                [
                    what if is_first else f"{burst['messages']:,} messages {what}",
                    f"{part['cpu']:.0f}",
                    f"{part['redis_cpu']:.0f}",
                    f"{part['sent']:,}",
                    f"{part['p50']:.1f}",
                    f"{part['worst']:.1f}",
                ]
            )
    return table(
        ["", "CPU, ms a second", "Redis'", "sent", "a refresh begins after, ms", "the slowest"], rows
    )


def _throughput_table(found: Mapping[str, Any]) -> str:
    ours = found[_OURS]

    def compared(name: str, of: str) -> str:
        return "" if name == _OURS else f"{ratio(ours[of] / found[name][of])} x"

    return table(
        [
            "",
            "changes/s",
            "slowest to fastest",
            "cdc-tasks is",
            "with its start",
            "cdc-tasks is",
            "own CPU, µs",
            "MB",
        ],
        [
            [
                f"**{name}**" if name == _OURS else name,
                f"{each['rate']:,}",
                f"{min(each['rates']):,} to {max(each['rates']):,}",
                compared(name, "rate"),
                f"{each['from_start']:,}",
                compared(name, "from_start"),
                f"{each['cpu']:.1f}",
                f"{each['memory']:.0f}",
            ]
            for name, each in found.items()
        ],
    )


def _sweep_table(what: str, found: Mapping[str, Any], title: Any) -> str:
    names = list(next(iter(found.values())))
    rows = [[title(key), *(f"{each[name]['rate']:,}" for name in names)] for key, each in found.items()]
    return table([what, *(f"{name}, changes/s" for name in names)], rows)


def _rabbitmq_table(found: Mapping[str, Any]) -> str:
    rows = [
        [name, f"{each['rate']:,}", f"{min(each['rates']):,} to {max(each['rates']):,}", f"{each['cpu']:.1f}"]
        for name, each in found.items()
    ]
    return table(["", "messages/s", "slowest to fastest", "own CPU, µs"], rows)


def _latency_table(found: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    rows = [
        [title, *(f"{found[what][part]:.1f}" for part in ("p50", "p95", "p99", "worst"))]
        for what, title in titles.items()
    ]
    return table(["milliseconds", "half of them", "95 %", "99 %", "the slowest"], rows)
