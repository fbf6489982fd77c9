"""The programs that read PostgreSQL's log, each from its own slot."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks import debezium
from benchmarks.contenders import Contender, Counting, Ours, Run
from benchmarks.postgres_stage import PUBLICATION, PostgresStage
from harness.listener_process import mortal
from harness.waiting import wait_until

__all__ = ["ALL", "FAST"]

_CHECKOUT = Path(__file__).resolve().parents[1]


class _OnASlot(Contender[PostgresStage]):
    plugin = "pgoutput"

    @property
    def slot(self) -> str:
        return self.name.replace(" ", "_").replace("-", "_").lower()

    def prepare(self, stage: PostgresStage) -> None:
        stage.run("SELECT pg_create_logical_replication_slot(%s, %s)", self.slot, self.plugin)

    def skip_the_rest(self, stage: PostgresStage) -> None:
        super().skip_the_rest(stage)
        _skip(stage, self.slot)


def _skip(stage: PostgresStage, slot: str) -> None:
    """Advance the slot to the end of the log."""
    free = "SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND NOT active"
    wait_until(lambda: stage.fetch(free, slot), timeout=60, what=f"{slot} to be free")
    stage.run("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", slot)


class _HandWritten(_OnASlot):
    name = "by hand"
    plugin = "wal2json"
    share = 1 / 20

    def start(self, stage: PostgresStage) -> Run:
        command = [
            sys.executable,
            "-m",
            "benchmarks.handwritten",
            stage.postgres.url,
            stage.valkey.url,
            self.slot,
        ]
        return _Sending(subprocess.Popen(mortal(command), cwd=_CHECKOUT), stage)


@dataclass
class _Sending(Run):
    stage: PostgresStage

    def progress(self) -> float:
        return int(self.stage.broker.llen("celery"))

    def end(self) -> None:
        super().end()
        self.stage.broker.delete("celery")


class _Recvlogical(_OnASlot):
    name = "pg_recvlogical"

    def start(self, stage: PostgresStage) -> Run:
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

    def is_done(self, rows: int) -> bool:  # noqa: ARG002 - the program ends by itself
        return self.process.poll() is not None

    def end(self) -> None:
        super().end()
        self.output.unlink(missing_ok=True)


class _Debezium(_OnASlot):
    name = "Debezium"
    as_pydbzengine = False

    def prepare(self, stage: PostgresStage) -> None:
        debezium.install()
        super().prepare(stage)

    def start(self, stage: PostgresStage) -> Run:
        properties = {
            "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
            "database.hostname": "127.0.0.1",
            "database.port": str(stage.postgres.port),
            "database.user": "postgres",
            "database.password": "",
            "database.dbname": "postgres",
            "plugin.name": "pgoutput",
            "slot.name": self.slot,
            "publication.name": PUBLICATION,
            "publication.autocreate.mode": "disabled",
            "snapshot.mode": "no_data",
        }
        return Counting(debezium.start(stage.valkey.home, properties, as_pydbzengine=self.as_pydbzengine))


class _Pydbzengine(_Debezium):
    name = "pydbzengine"
    as_pydbzengine = True


FAST: tuple[Contender[PostgresStage], ...] = (_Recvlogical(), Ours(), _Debezium())
ALL = (*FAST, _Pydbzengine(), _HandWritten())
