"""Imports run one way: demo → listener → what both sides know; workers know nothing of the listener."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHARED = {
    "cdc_tasks.addresses",
    "cdc_tasks.changes",
    "cdc_tasks.config",
    "cdc_tasks.config.guarantees",
    "cdc_tasks.errors",
    "cdc_tasks.logs",
    "cdc_tasks.broker.neighbours",
    "cdc_tasks.broker.rabbitmq.queues",
    "cdc_tasks.broker.redis.rights",
    "cdc_tasks.settings",
}


def imported_by(package: str) -> set[tuple[str, str]]:
    found = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in {"cdc_tasks", "listener", "demo"}:
                found |= {(str(path.relative_to(ROOT)), f"{node.module}.{name.name}") for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add((str(path.relative_to(ROOT)), node.module))
            elif isinstance(node, ast.Import):
                found |= {(str(path.relative_to(ROOT)), name.name) for name in node.names}
    return found


@pytest.mark.parametrize(
    ("package", "stranger"), [("cdc_tasks", "listener"), ("cdc_tasks", "demo"), ("listener", "demo")]
)
def test_nobody_imports_what_stands_above(package: str, stranger: str) -> None:
    against = {(path, name) for path, name in imported_by(package) if name.split(".")[0] == stranger}
    assert not against


def test_the_listener_imports_only_what_both_sides_know() -> None:
    ours = {(path, name) for path, name in imported_by("listener") if name.split(".")[0] == "cdc_tasks"}
    assert ours
    assert {(path, name) for path, name in ours if name not in SHARED} == set()


def test_what_both_sides_know_imports_nothing_of_a_workers() -> None:
    ours = {
        (path, name)
        for path, name in imported_by("cdc_tasks")
        if name.split(".")[0] == "cdc_tasks" and path.removesuffix(".py").replace("/", ".") in SHARED
    }
    assert {name for _, name in ours} <= SHARED


def test_importing_the_listener_loads_no_task() -> None:
    program = "import sys, listener.daemon.loop, listener.routes; print(*(m for m in sys.modules if 'cdc_tasks.' in m))"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert set(loaded.split()) <= SHARED
