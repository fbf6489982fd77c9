"""The section of the page about MySQL and MariaDB."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import charts
from benchmarks.tables import ratio, table

__all__ = ["pictures", "section"]

_OURS = "cdc-tasks"
_NAMES = {"mariadb": "MariaDB", "mysql": "MySQL"}
_NOTHING = 'Not measured yet: `make bench ARGS="--database mariadb --database mysql"`.'
_QUICK = "**These are short runs (`--quick`), which only show that everything works.** "


def pictures(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the charts by name."""
    return {
        database: charts.columns(
            f"Changes a second from {name}'s binlog",
            {f"{size}": _rates(found) for size, found in results[database]["throughput"].items()},
            unit="/s",
            below="rows in a transaction",
        )
        for database, name in _NAMES.items()
        if "throughput" in results.get(database, {})
    }


def section(results: Mapping[str, Any]) -> str:
    """Return the results for each server."""
    found = [_of_server(database, results[database]) for database in _NAMES if database in results]
    return "\n\n".join(found) or _NOTHING


def _of_server(database: str, found: Mapping[str, Any]) -> str:
    about = found["about"]
    caution = _QUICK if about["quick"] else ""
    rows = f"{about['rows']:,} rows, rounds: {about['rounds']}"
    parts = [
        f"### {_NAMES[database]}",
        f"{caution}{_NAMES[database]} {about['version']}, {about['date']}; {rows}.",
    ]
    if "throughput" in found:
        parts += [f"![Changes a second](benchmarks/{database}.svg)", _throughput(found["throughput"])]
    if "memory" in found:
        parts.append(_memory(found["memory"]))
    return "\n\n".join(parts)


def _throughput(found: Mapping[str, Any]) -> str:
    head = [
        "rows in a transaction",
        "",
        "changes/s",
        "slowest to fastest",
        "cdc-tasks is",
        "own CPU, µs a change",
    ]
    rows = [
        [
            size,
            f"**{name}**" if name == _OURS else name,
            f"{each['rate']:,}",
            f"{min(each['rates']):,} to {max(each['rates']):,}",
            "" if name == _OURS else f"{ratio(every[_OURS]['rate'] / each['rate'])} x",
            f"{each['cpu']:.1f}",
        ]
        for size, every in found.items()
        for name, each in every.items()
    ]
    return table(head, rows)


def _memory(found: Mapping[str, float]) -> str:
    head = ["rows in a transaction", *(f"{int(size):,}" for size in found)]
    return table(head, [["MB at the peak", *(f"{value:.0f}" for value in found.values())]])


def _rates(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {name: each["rate"] for name, each in found.items()}
