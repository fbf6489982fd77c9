"""What attacks have found: kept run by run, and written into docs/correctness.md.

`make chaos ARGS="… --record"` adds its run to docs/correctness/results.json, and writes the page from there and from
`correctness.md` beside this file. `python -m tests.acceptance.correctness` writes the page alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template
from typing import Final

__all__ = ["PAGE", "RESULTS", "TEMPLATE", "Outcome", "Record", "add", "page_of", "read", "write_page"]

RESULTS: Final = Path(__file__).resolve().parents[2] / "docs" / "correctness" / "results.json"
PAGE: Final = RESULTS.parents[1] / "correctness.md"
TEMPLATE: Final = Path(__file__).with_name("correctness.md")
_TABLE_OF: Final = "runs_"
_SERVERS: Final = {"postgresql": "PostgreSQL", "mysql": "MySQL", "mariadb": "MariaDB"}
_BROKERS: Final = {"redis": "Redis", "rabbitmq": "RabbitMQ"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run came to."""

    promise: str  # behind "each committed change is there"
    changes: int  # that were committed meanwhile, or enqueued
    faults: Sequence[str]
    attacks: int | None = None  # None: as many as were asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One run, as the results have it."""

    target: str
    source: str
    broker: str
    date: str  # ISO 8601
    version: str
    seed: int
    attacks: int
    changes: int
    faults: int
    seconds: int
    command: str


def read(path: Path) -> list[Record]:
    """Return all runs, oldest first within a target."""
    return [Record(**each) for each in json.loads(path.read_text())] if path.exists() else []


def add(record: Record, path: Path) -> None:
    """Add a run; one with the same command is replaced."""
    kept = [each for each in read(path) if each.command != record.command]
    runs = sorted([*kept, record], key=lambda each: (each.target, each.source, each.broker, each.date))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(each) for each in runs], indent=1) + "\n")


def write_page(path: Path) -> None:
    """Write the page from the results at this path."""
    PAGE.write_text(page_of(read(path)))


def page_of(runs: Sequence[Record]) -> str:
    """Return the page; where it tells of a target that has no run it says so."""
    template = Template(TEMPLATE.read_text())
    targets = [
        name.removeprefix(_TABLE_OF) for name in template.get_identifiers() if name.startswith(_TABLE_OF)
    ]
    facts = {
        "runs": f"{len(runs):,}",
        "attacks": f"{sum(each.attacks for each in runs):,}",
        "changes": f"{sum(each.changes for each in runs):,}",
        "faults": f"{sum(each.faults for each in runs):,}",
        "hours": f"{sum(each.seconds for each in runs) / 3600:.1f}",
        "dates": _dates(each.date for each in runs),
        **{f"{_TABLE_OF}{target}": _table(runs, target) for target in targets},
    }
    return template.substitute(facts)


def _dates(dates: Iterable[str]) -> str:
    first, *_, last = sorted({*dates}) * 2
    return first if first == last else f"{first} to {last}"


def _table(runs: Sequence[Record], target: str) -> str:
    head = ["on", "attacks", "changes", "faults", "minutes", "version, date", "command"]
    rows = [_row(each) for each in runs if each.target == target]
    if not rows:
        return "No run of it is kept."
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def _row(run: Record) -> list[str]:
    return [
        f"{_SERVERS[run.source]}, {_BROKERS[run.broker]}",
        f"{run.attacks:,}",
        f"{run.changes:,}" if run.changes else "–",  # noqa: RUF001 - a dash, as in every table of the docs
        f"{run.faults:,}",
        f"{run.seconds / 60:.1f}",
        f"{run.version}, {run.date}",
        f"`{run.command}`",
    ]


if __name__ == "__main__":
    write_page(RESULTS)
