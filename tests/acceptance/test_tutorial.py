"""A reader who types what the tutorial says sees what it shows: in an environment with the wheel, on real servers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import pytest

from harness.embedded_servers import PostgresServer
from harness.server_process import free_port
from harness.waiting import at_most, wait_until
from tests.support.snippets.blocks import blocks_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Broker
    from tests.support.snippets.blocks import Block

# The programs that go on until Ctrl-C, and the short names that the page's marks have for them.
_PROGRAMS: Final = {
    "celery -A shop worker": "worker",
    "python -m listener run": "listener",
    "python -m listener watch": "watch",
    "python -m listener console": "console",
}
_DONE_BEFORE: Final = ("mkdir ", "cd ", "python3 -m venv ", ". ", "pip ")  # by the fixtures
_LEFT_OUT: Final = "…"
# What differs from run to run.
_PLACEHOLDERS: Final = (
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d([.,]\d+)?(Z|\+00:00)?", "TIME"),
    (r"\b[0-9a-f]{16}-[0-9A-F]+-[0-9A-F]+-\d+(?=-[0-9a-f]{8}\b|\b)", "ID"),
    (r"cdc_watch_\w+", "cdc_watch"),
    (r"celery@[\w.-]+", "celery@yours"),
    (r"ForkPoolWorker-\d+", "ForkPoolWorker"),
    (r"\s+", " "),
)


class Reader:
    """Somebody with three terminals."""

    def __init__(self, directory: Path, python: Path, postgres: PostgresServer, broker: Broker) -> None:
        self._directory, self._postgres, self._stack = directory, postgres, ExitStack()
        console = f"127.0.0.1:{free_port()}"
        self._addresses = {
            "postgres:secret@localhost:5432": f"postgres@127.0.0.1:{postgres.port}",
            "redis://localhost:6379/0": broker.url,
            "127.0.0.1:5556": console,
        }
        path = [str(python.parent), str(postgres.binaries), os.environ["PATH"]]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CDC_", "CELERY_"))}
        self._environment = {
            **kept,
            "PATH": os.pathsep.join(path),
            "PYTHONUNBUFFERED": "1",
            "CDC_CONSOLE_ADDRESS": console,
        }
        self._environment.pop("PYTHONPATH", None)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def follow(self, block: Block) -> None:
        """Do what a block says, and compare what it shows."""
        if block.language == "console" and "not run" not in block.marks:
            for command, shown in _commands(block):
                self._type(command, shown)
        elif block.language == "python":
            self._write(block.text)
        elif block.language == "text":
            wait_until(
                lambda: set(_plain(block.text)) <= set(_plain(self.log(block.marks["output"]))),
                what=f"{block}: {block.text}",
                timeout=60,
            )

    def _write(self, text: str) -> None:
        file = self._directory / "shop.py"
        if text.startswith("# shop.py"):
            file.write_text(self._with_addresses(text))
        else:  # the last line, corrected
            file.write_text("\n".join([*file.read_text().splitlines()[:-1], f"    {text}"]))

    def _type(self, command: str, shown: list[str]) -> None:
        line = self._with_addresses(command)
        if line.startswith(_DONE_BEFORE):
            return
        if line.startswith("export "):
            name, _, value = line.removeprefix("export ").partition("=")
            self._environment[name] = value
        elif line == "docker restart tutorial-postgres":
            self._postgres.restart()
        elif line.startswith("pkill -9"):  # by its number: others may run one, too
            self._end("listener", signal.SIGKILL)
        elif name := next((name for start, name in _PROGRAMS.items() if line.startswith(start)), ""):
            self._start(name, line, shown)
        else:
            if "pg_drop_replication_slot" in line:
                self.close()
            found = self._run(line)
            assert _has(found, self._with_addresses("\n".join(shown))), f"{line}\n{found}"

    def _with_addresses(self, text: str) -> str:
        for theirs, ours in self._addresses.items():
            text = text.replace(theirs, ours)
        return text

    def _run(self, line: str) -> str:
        done = subprocess.run(
            ["/bin/bash", "-c", line],
            cwd=self._directory,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=at_most(60),
            check=False,
        )
        return done.stdout

    def _start(self, name: str, line: str, shown: list[str]) -> None:
        self._end(name, signal.SIGINT)
        log = self._directory / f"{name}.log"
        before = len(self.log(name))
        with log.open("ab") as out:
            process = subprocess.Popen(
                ["/bin/bash", "-c", f"exec {line}"],
                cwd=self._directory,
                env=self._environment,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self._running[name] = process
        expected = self._with_addresses("\n".join(shown))
        wait_until(
            lambda: _has(self.log(name)[before:], expected) or process.poll() is not None,
            what=f"{line}\n{expected}",
            timeout=60,
        )
        assert process.poll() is None, self.log(name)

    def log(self, name: str) -> str:
        file = self._directory / f"{name}.log"
        return file.read_text() if file.exists() else ""

    def _end(self, name: str, number: signal.Signals) -> None:
        if process := self._running.pop(name, None):
            process.send_signal(number)
            try:
                process.wait(at_most(30))
            finally:
                process.kill()

    def close(self) -> None:
        """Press Ctrl-C in each terminal."""
        for name in list(self._running):
            self._end(name, signal.SIGINT)


def _commands(block: Block) -> Iterator[tuple[str, list[str]]]:
    """Yield each command of a block, and what is shown below it."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, *shown = part.splitlines()
        yield command, shown


def _plain(text: str) -> list[str]:
    """Return the lines without what differs from run to run."""
    return [_plain_line(line) for line in text.splitlines() if line.strip()]


def _plain_line(line: str) -> str:
    for pattern, placeholder in _PLACEHOLDERS:
        line = re.sub(pattern, placeholder, line)
    return line.strip()


def _has(text: str, shown: str) -> bool:
    """Return whether this text is what is shown, with any lines where `…` stands, and behind the last line."""
    pattern = "\n".join("(?:.*\n)*?" if line == _LEFT_OUT else re.escape(line) for line in _plain(shown))
    return re.match(pattern.replace("*?\n", "*?"), "\n".join(_plain(text))) is not None


@pytest.fixture
def reader(installed_python: Path, tmp_path: Path, broker: Broker) -> Iterator[Reader]:
    server = PostgresServer()
    del server.settings["wal_level"]  # as a server is when it is new
    with server:
        reader = Reader(tmp_path, installed_python, server, broker)
        yield reader
        reader.close()


def test_each_step_shows_what_the_page_shows(reader: Reader) -> None:
    for block in blocks_of("docs/tutorial.md"):
        reader.follow(block)
    log = reader.log("worker")
    for line in ("order 1 is from", "order 2 is from", "order 3 is from", "order 1 goes to"):
        assert log.count(line) == 1, line


def test_what_differs_from_the_page_is_seen() -> None:
    shown = "first\n…\nid 10:00\nlast"
    assert _has("first\nid 10:00\nlast", shown)
    assert _has("first\none\ntwo\nid 10:00\nlast\nmore", shown)
    assert not _has("first\none\nid 10:00\nnone\nlast", shown)
    assert not _has("none\nfirst\nid 10:00\nlast", shown)
    assert _has("2026-01-01T00:00:00.1Z [info   ] x", "2027-01-01T00:00:00.123456Z [info ] x")
