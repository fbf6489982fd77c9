"""The examples, started with the commands of their READMEs, show what the READMEs say one sees."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import redis

from examples.stage import EXAMPLES
from harness.waiting import at_most, wait_until
from tests.conftest import fresh_database

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from concurrent.futures import Future

    from harness.embedded_servers import PostgresServer, ValkeyServer
    from tests.conftest import Database

_CHECKOUT: Final = Path(__file__).resolve().parents[2]
_STORY: Final = re.compile(r"^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NUMBER: Final = re.compile(r"\b[0-9a-f]{12,}\b|\d+(?:\.\d+)?")
_STAYS: Final = "It goes on until Ctrl-C"
_LEFT_BY_CTRL_C: Final = "fastapi-orders"  # the others end by themselves, after their story
_ON_MARIADB: Final = "outbox --database mariadb"
_AT_ONCE: Final = 3  # most of a start is waiting


@dataclass(frozen=True, kw_only=True)
class Played:
    """An example that plays, or has played."""

    ended: Future[tuple[int, str]]  # with this status, after this output
    database: Database | None  # None: its own


@pytest.fixture(scope="module")
def played(
    request: pytest.FixtureRequest, postgres_server: PostgresServer, valkey_server: ValkeyServer
) -> Iterator[Mapping[str, Played]]:
    """The examples that tests of this run ask for."""
    here = [item for item in request.session.items if item.path == Path(__file__)]
    chosen = [item.callspec.params["example"] for item in here if hasattr(item, "callspec")]
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(_AT_ONCE))
        found = {}
        for number, name in enumerate(chosen):
            database = None if name == _ON_MARIADB else stack.enter_context(fresh_database(postgres_server))
            environment = _environment(database)
            if name == "audit-log":
                environment["AUDIT_DATABASE_URL"] = stack.enter_context(fresh_database(postgres_server)).url
            if "outbox" not in name:  # which stops its broker
                environment["CELERY_BROKER_URL"] = valkey_server.url_of(2 + number)
            found[name] = Played(ended=pool.submit(_play, name, environment), database=database)
        yield found
    with redis.Redis.from_url(valkey_server.url) as client:
        client.flushall()


def _environment(database: Database | None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_URL")}
    given = {"DATABASE_URL": database.url, "CDC_NAME": database.name} if database else {}
    return {**kept, **given, "PYTHON": sys.executable}


def _play(name: str, environment: Mapping[str, str]) -> tuple[int, str]:
    """Type the second command of the README; return the exit status and what was printed."""
    stays = name == _LEFT_BY_CTRL_C
    # A shell's background jobs ignore Ctrl-C, and the example would inherit that.
    command = ["env", "--default-signal=INT", "examples/run", *name.split(), *([] if stays else ["--once"])]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            cwd=_CHECKOUT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            if stays:
                wait_until(
                    lambda: process.poll() is not None or _STAYS in _read(output.fileno()),
                    timeout=100,
                    what=_STAYS,
                )
                process.send_signal(signal.SIGINT)
            status = process.wait(at_most(100))
        finally:
            process.kill()
            process.wait()
        return status, _read(output.fileno())


def _read(descriptor: int) -> str:
    return os.pread(descriptor, 1 << 20, 0).decode()


@pytest.mark.parametrize("example", [*EXAMPLES, _ON_MARIADB])
def test_an_example_shows_what_its_readme_says(example: str, played: Mapping[str, Played]) -> None:
    readme = (_CHECKOUT / "examples" / example.split(maxsplit=1)[0] / "README.md").read_text()
    (promised,) = _STORY.findall(readme)
    status, output = played[example].ended.result()
    assert status == 0, output
    assert _steps(output.partition(f"\n{_STAYS}")[0]) == _steps(promised), output
    if (database := played[example].database) is not None:
        slots = database.fetch("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", database.name)
        assert not slots, "it keeps log forever"


def _steps(text: str) -> str:
    """Return what is printed from the first step on, without numbers."""
    return _NUMBER.sub("#", text[text.index("\n1. ") :].rstrip())


def test_a_name_that_is_none_is_told_with_those_that_there_are() -> None:
    command = ["examples/run", "django"]
    done = subprocess.run(
        command, cwd=_CHECKOUT, env=_environment(None), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "There is no example 'django'." in done.stderr
    assert "django-shop" in done.stderr
    assert "Traceback" not in done.stderr
