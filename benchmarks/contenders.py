"""Four programs that read the same rows from the same server: each has a slot of its own."""

from __future__ import annotations

import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import debezium
from benchmarks.routes import QUEUE
from benchmarks.stage import PUBLICATION, Stage
from tests.acceptance.listener_process import mortal
from tests.waiting import wait_until

__all__ = ["ALL", "Contender", "Run"]

_CHECKOUT = Path(__file__).resolve().parents[1]


@dataclass
class Run:
    """A program that reads now."""

    process: subprocess.Popen[Any]

    def progress(self) -> float:
        """How far it is, in a unit of its own that grows as rows are done."""
        raise NotImplementedError

    def is_done(self, rows: int) -> bool:
        return self.progress() >= rows

    def end(self) -> None:
        """End the program, and what belongs to it."""
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()


class Contender(ABC):
    """One way to get rows out of PostgreSQL."""

    name: str
    plugin = "pgoutput"
    share = 1.0  # of the rows; a slow one reads only the first of them

    @property
    def slot(self) -> str:
        return self.name.replace(" ", "_").replace("-", "_").lower()

    def prepare(self, stage: Stage) -> None:
        """Make what has to be there before rows are written."""
        stage.run("SELECT pg_create_logical_replication_slot(%s, %s)", self.slot, self.plugin)

    @abstractmethod
    def start(self, stage: Stage) -> Run:
        """Start to read."""

    def skip_the_rest(self, stage: Stage) -> None:
        """Let the slot forget what was not read."""
        free = "SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND NOT active"
        wait_until(lambda: stage.fetch(free, self.slot), timeout=60, what=f"{self.slot} to be free")
        stage.run("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", self.slot)
        stage.broker.unlink(QUEUE)


class Ours(Contender):
    name = "cdc-tasks"
    slot = "ours"

    def prepare(self, stage: Stage) -> None:
        with stage.listener() as listener:
            listener.wait_for("streaming")
            listener.stop()

    def start(self, stage: Stage) -> Run:
        return _Queueing(stage.listener().process, stage)


@dataclass
class _Queueing(Run):
    stage: Stage

    def progress(self) -> float:
        return self.stage.queued()


class HandWritten(Contender):
    name = "by hand"
    plugin = "wal2json"
    share = 1 / 20

    def start(self, stage: Stage) -> Run:
        command = [
            sys.executable,
            "-m",
            "benchmarks.handwritten",
            stage.postgres.url,
            stage.valkey.url,
            self.slot,
        ]
        return _HandWritten(subprocess.Popen(mortal(command), cwd=_CHECKOUT), stage)


@dataclass
class _HandWritten(Run):
    stage: Stage

    def progress(self) -> float:
        return int(self.stage.broker.llen("celery"))

    def end(self) -> None:
        super().end()
        self.stage.broker.delete("celery")


class Recvlogical(Contender):
    name = "pg_recvlogical"

    def start(self, stage: Stage) -> Run:
        output = stage.valkey.home / "recvlogical"
        output.unlink(missing_ok=True)
        (end,) = stage.fetch("SELECT pg_current_wal_lsn()::text")[0]
        options = [f"--dbname={stage.postgres.url}", f"--slot={self.slot}", "--start", f"--file={output}"]
        options += [
            "--option=proto_version=1",
            f"--option=publication_names={PUBLICATION}",
            f"--endpos={end}",
        ]
        program = stage.postgres.binaries / "pg_recvlogical"
        return _Writing(subprocess.Popen(mortal([str(program), *options])), output)


@dataclass
class _Writing(Run):
    output: Path

    def progress(self) -> float:
        return self.output.stat().st_size if self.output.exists() else 0

    def is_done(self, rows: int) -> bool:  # noqa: ARG002 - it ends by itself
        return self.process.poll() is not None

    def end(self) -> None:
        super().end()
        self.output.unlink(missing_ok=True)


class Debezium(Contender):
    name = "Debezium"

    def prepare(self, stage: Stage) -> None:
        debezium.install()
        super().prepare(stage)

    def start(self, stage: Stage) -> Run:
        return _Counting(debezium.start(stage, self.slot))


class _Counting(Run):
    def __init__(self, process: subprocess.Popen[str]) -> None:
        super().__init__(process)
        self._count = 0
        threading.Thread(target=self._read, daemon=True).start()

    def progress(self) -> float:
        return self._count

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self._count = int(line)


ALL: tuple[Contender, ...] = (Recvlogical(), Ours(), Debezium(), HandWritten())
