"""What a person asks of the command line in passing is answered at once: it loads neither Celery nor a driver."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from typing import Final

import pytest

from listener.cli.variables import described_variables
from listener.daemon.settings import ListenerSettings

HEAVY: Final = (
    "celery",
    "django",
    "kombu",
    "psycopg2",
    "pydantic_settings",
    "pymysql",
    "pymysqlreplication",
    "redis",
    "sqlalchemy",
)
SHOW: Final = """
import atexit, os, runpy, sys
heavy = set(os.environ["HEAVY"].split(","))
atexit.register(lambda: print("loaded:", *sorted(heavy & set(sys.modules)), file=sys.stderr))
sys.argv[:] = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    "words",
    [
        "listener --help",
        "listener --version",
        "listener parked --help",
        "listener run --help",
        "cdc_tasks --help",
        "cdc_tasks --version",
        "cdc_tasks dead-letters --help",
    ],
)
def test_help_and_version_load_neither_celery_nor_a_driver(words: str) -> None:
    assert _loaded_by(words, HEAVY) == "loaded:"


def test_the_table_of_routes_needs_neither_celery_nor_a_driver() -> None:
    light = {"django", "kombu", "pydantic_settings"}  # kombu's JSON encoder, which looks for Django
    assert _loaded_by("listener routes", set(HEAVY) - light) == "loaded:"


def _loaded_by(words: str, of: Iterable[str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SHOW, *words.split()],
        env={"HEAVY": ",".join(of), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout
    return done.stderr.splitlines()[-1]


def test_help_describes_each_variable_as_the_settings_do() -> None:
    fields = ListenerSettings.model_fields

    assert described_variables() == {name.upper(): field.description for name, field in fields.items()}
