"""Imports run one way, from room to room; a new file is held to the rules of the room that it is put into."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT = Path(__file__).parents[2]

# What the listener may import of `cdc_tasks`, and what these may import of each other. None of it loads a task.
SHARED: Final = {
    "cdc_tasks",
    "cdc_tasks.addresses",
    "cdc_tasks.apps",
    "cdc_tasks.broker.connection",
    "cdc_tasks.broker.delivery_marks",
    "cdc_tasks.broker.other_workers",
    "cdc_tasks.broker.rabbitmq.delayed_delivery",
    "cdc_tasks.broker.rabbitmq.partitions",
    "cdc_tasks.broker.rabbitmq.queues",
    "cdc_tasks.broker.redis.acl",
    "cdc_tasks.broker.redis.message_groups",
    "cdc_tasks.changes",
    "cdc_tasks.command_line",
    "cdc_tasks.config",
    "cdc_tasks.config.part_settings",
    "cdc_tasks.config.required_settings",
    "cdc_tasks.broker.queues",
    "cdc_tasks.environment",
    "cdc_tasks.errors",
    "cdc_tasks.extras",
    "cdc_tasks.installed",
    "cdc_tasks.logs",
    "cdc_tasks.passwords",
    "cdc_tasks.record",
    "cdc_tasks.routing",
    "cdc_tasks.routing.arguments",
    "cdc_tasks.routing.contexts",
    "cdc_tasks.routing.decorators",
    "cdc_tasks.routing.enqueued",
    "cdc_tasks.routing.explained",
    "cdc_tasks.routing.keys",
    "cdc_tasks.routing.message_groups",
    "cdc_tasks.routing.predicates",
    "cdc_tasks.routing.checks",
    "cdc_tasks.routing.route",
    "cdc_tasks.routing.router",
    "cdc_tasks.routing.tables",
    "cdc_tasks.routing.tasks",
    "cdc_tasks.settings",
    "cdc_tasks.source_lines",
    "cdc_tasks.testing",
    "cdc_tasks.totals",
    "cdc_tasks.tracing",
    "cdc_tasks.versions",
    "cdc_tasks.user_code",
    "cdc_tasks.variables",
    "cdc_tasks.words",
}

# What the console needs of a worker's side besides: it shows and does what `python -m cdc_tasks` does.
CONSOLE: Final = {
    "cdc_tasks.broker.message_groups",
    "cdc_tasks.cache",
    "cdc_tasks.cli.letters",
    "cdc_tasks.dead_letters.store",
    "cdc_tasks.master_cache_notes",
    "cdc_tasks.notify.message_record",
    "cdc_tasks.notify.people",
}

# Each room may import from those in front of it in its row, and from itself. What stands in one string is one level.
LEVELS: Final = (
    # an application's and a worker's side: the engine first, then what is built on it
    (
        "cdc_tasks.variables",
        (
            "cdc_tasks.errors cdc_tasks.changes cdc_tasks.addresses cdc_tasks.words "
            "cdc_tasks.source_lines cdc_tasks.totals"
        ),
        "cdc_tasks.environment cdc_tasks.extras cdc_tasks.record",
        "cdc_tasks.installed",
        "cdc_tasks.passwords",
        "cdc_tasks.record",
        (
            "cdc_tasks.retry cdc_tasks.logs cdc_tasks.settings cdc_tasks.routing "
            "cdc_tasks.versions cdc_tasks.user_code cdc_tasks.command_line"
        ),
        "cdc_tasks.tracing",
        "cdc_tasks.outbox cdc_tasks.cache cdc_tasks.db cdc_tasks.apps cdc_tasks.testing",
        "cdc_tasks.broker.rabbitmq.queues cdc_tasks.broker.delivery_marks cdc_tasks.broker.connection",
        "cdc_tasks.broker.rabbitmq.partitions",
        "cdc_tasks.broker.queues",
        "cdc_tasks.dead_letters cdc_tasks.web cdc_tasks.master_cache_notes",
        "cdc_tasks.broker",
        "cdc_tasks.worker cdc_tasks.latest",
        "cdc_tasks.command_line",
        "cdc_tasks.config",
        # what of the worker's room makes an app
        "cdc_tasks.worker.startup cdc_tasks.worker.own_tasks cdc_tasks.worker.install",
        "cdc_tasks.celery",
        "cdc_tasks.notify cdc_tasks.master_cache",
        "cdc_tasks.helpdesk",
        "cdc_tasks.cli cdc_tasks.pytest_plugin",
        "cdc_tasks.__main__ cdc_tasks.scripts cdc_tasks.django",
    ),
    (
        "listener.router listener.core",
        "listener.publish listener.postgres listener.mysql listener.routes",
        "listener.control listener.testing",
        "listener.metrics",
        "listener.daemon",
        # the console shows and does the same
        "listener.cli.output listener.cli.parked_changes",
        "listener.cli.found_change",
        "listener.console",
        "listener.cli",
        "listener.__main__",
    ),
    (
        "listener.postgres.hints listener.postgres.log",
        "listener.postgres.codec",
        "listener.postgres.client",
        "listener.postgres.tables listener.postgres.wal2json",
        "listener.postgres.plugins listener.postgres.gaps listener.postgres.backfill",
        "listener.postgres.check listener.postgres.setup listener.postgres.status listener.postgres.existing_tables",
        "listener.postgres.monitor listener.postgres.tail",
    ),
    (
        "listener.mysql.errors listener.mysql.log",
        "listener.mysql.client",
        "listener.mysql.charsets",
        "listener.mysql.sql",
        "listener.mysql.codec",
        "listener.mysql.visibility",
        "listener.mysql.tables listener.mysql.stream listener.mysql.start",
        "listener.mysql.log_decoder",
        "listener.mysql.backfill listener.mysql.history",
        "listener.mysql.check listener.mysql.status listener.mysql.existing_tables",
        "listener.mysql.monitor",
        "listener.mysql.tail",
    ),
)


PACKAGES: Final = (
    "cdc_tasks",
    "listener",
    "harness",
    "demo",
    "examples",
    "benchmarks",
    "reference",
    "tests",
)  # each may import those before it


def modules(package: str) -> Iterator[tuple[str, Path]]:
    for path in (ROOT / package).rglob("*.py"):
        name = str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
        yield name.removesuffix(".__init__"), path


def imported_by(package: str, *, when_called: bool = True) -> set[tuple[str, str]]:
    """Return which module of the package imports which module of ours, with those that a function loads or without."""
    known = {name for each in PACKAGES for name, _ in modules(each)}
    found = set()
    for module, path in modules(package):
        for node in ast.walk(ast.parse(path.read_text())):
            if not when_called and getattr(node, "col_offset", 0):
                continue
            if isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{name.name}" for name in node.names}
                found |= {(module, name) for name in (inner & known or {node.module})}
            elif isinstance(node, ast.Import):
                found |= {(module, name.name) for name in node.names}
    return {(module, name) for module, name in found if name in known and name != module}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_imports_one_that_stands_above_it(package: str) -> None:
    above = set(PACKAGES[PACKAGES.index(package) + 1 :])
    if package == "benchmarks":
        above.add("demo")
    against = {(path, name) for path, name in imported_by(package) if name.split(".")[0] in above}
    if package == "cdc_tasks":  # `manage.py cdc` is the listener's command line: loaded when it is called
        at_once = imported_by("cdc_tasks", when_called=False)
        against = {each for each in against if each in at_once or not each[0].startswith("cdc_tasks.django.")}
    assert not against


def test_nothing_loads_django_but_the_room_for_it() -> None:
    for package in ("cdc_tasks", "listener"):
        for module, path in modules(package):
            names = re.findall(r"^\s*(?:from|import) ([\w.]+)", path.read_text(), re.MULTILINE)
            strangers = [name for name in names if name.startswith(("django", "cdc_tasks.django"))]
            assert not strangers or module.startswith("cdc_tasks.django"), module


@pytest.mark.parametrize("levels", LEVELS, ids=["cdc_tasks", "listener", "postgres", "mysql"])
def test_rooms_import_one_way(levels: tuple[str, ...]) -> None:
    level = {room: number for number, rooms in enumerate(levels) for room in rooms.split()}

    def room_of(module: str) -> str | None:
        rooms = [room for room in level if f"{module}.".startswith(f"{room}.")]
        return max(rooms, key=len, default=None)

    against = set()
    for module, name in imported_by("cdc_tasks") | imported_by("listener"):
        here, there = room_of(module), room_of(name)
        if here is None or there is None or here.startswith(there) or there.startswith(here):
            continue
        is_one_room = here.rpartition(".")[0] == there.rpartition(".")[0] == "cdc_tasks.worker"
        if level[there] >= level[here] and not is_one_room:
            against.add((module, name))
    assert against == set()


def test_every_room_has_its_level() -> None:
    """A module that no row names would be held to no rule."""
    levelled = {room for levels in LEVELS for rooms in levels for room in rooms.split()}
    packages = {"cdc_tasks", "listener", "listener.postgres", "listener.mysql"}
    for package in ("cdc_tasks", "listener"):
        for module, _ in modules(package):
            parts = module.split(".")
            prefixes = {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
            assert module in packages or prefixes & levelled, module


def test_the_sources_know_nothing_of_each_other_and_of_brokers() -> None:
    for room, strangers in {
        "listener.postgres": ("listener.mysql", "listener.publish"),
        "listener.mysql": ("listener.postgres", "listener.publish"),
        "listener.publish": ("listener.postgres", "listener.mysql"),
        "cdc_tasks.notify": ("cdc_tasks.master_cache",),
        "cdc_tasks.master_cache": ("cdc_tasks.notify",),
    }.items():
        against = {
            (module, name)
            for module, name in imported_by(room.split(".", maxsplit=1)[0])
            if f"{module}.".startswith(f"{room}.") and name.startswith(strangers)
        }
        assert against == set()


def test_the_listener_imports_only_what_both_sides_know() -> None:
    ours = {(path, name) for path, name in imported_by("listener") if name.split(".")[0] == "cdc_tasks"}
    assert ours
    against = {(path, name) for path, name in ours if name not in SHARED}
    assert {each for each in against if not each[0].startswith("listener.console.")} == set()
    assert {name for _, name in against} <= CONSOLE


def test_what_both_sides_know_imports_nothing_of_a_workers() -> None:
    ours = {(path, name) for path, name in imported_by("cdc_tasks") if path in SHARED - {"cdc_tasks"}}
    assert {name for _, name in ours} <= SHARED


def test_importing_the_listener_loads_no_task_and_no_driver_of_a_database() -> None:
    program = "import sys, listener.daemon.wiring, listener.routes; print(*sys.modules)"
    loaded = set(
        subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.split()
    )
    assert not {"psycopg2", "pymysql", "listener.postgres", "listener.mysql"} & loaded
    assert {name for name in loaded if name.startswith("cdc_tasks.")} <= SHARED | {
        "cdc_tasks.broker",
        "cdc_tasks.broker.redis",
        "cdc_tasks.broker.rabbitmq",
    }
