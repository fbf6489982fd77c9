"""The programs that read a binlog, each from the start of the rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks import debezium
from benchmarks.binlog_stage import BinlogStage
from benchmarks.contenders import Contender, Counting, Ours, Run
from harness.listener_process import mortal

__all__ = ["MARIADB", "MYSQL"]

_CHECKOUT = Path(__file__).resolve().parents[1]


class _Stock(Contender[BinlogStage]):
    name = "mysql-replication"

    def prepare(self, stage: BinlogStage) -> None:
        """Do nothing."""

    def start(self, stage: BinlogStage) -> Run:
        kind = "mariadb" if stage.is_mariadb else "mysql"
        command = [
            sys.executable,
            "-m",
            "benchmarks.stock_reader",
            str(stage.server.port),
            stage.mark.gtids,
            kind,
        ]
        process = subprocess.Popen(mortal(command), cwd=_CHECKOUT, stdout=subprocess.PIPE, text=True)
        return Counting(process)


class _Debezium(Contender[BinlogStage]):
    name = "Debezium"

    def prepare(self, stage: BinlogStage) -> None:  # noqa: ARG002 - the server needs nothing
        debezium.install()

    def start(self, stage: BinlogStage) -> Run:
        properties = {
            "connector.class": "io.debezium.connector.mysql.MySqlConnector",
            "database.hostname": "127.0.0.1",
            "database.port": str(stage.server.port),
            "database.user": "root",
            "database.password": "",
            "database.server.id": "4712",
            "table.include.list": "public.tickets",
            "include.schema.changes": "false",
            "snapshot.mode": "recovery",  # reads the table's definition, then continues from the offset
            "snapshot.locking.mode": "none",
            "schema.history.internal": "io.debezium.relational.history.MemorySchemaHistory",
        }
        mark = stage.mark
        offset = {"file": mark.file, "pos": mark.offset, "gtids": mark.gtids}
        return Counting(
            debezium.start(stage.valkey.home, properties, offset=(["bench", {"server": "bench"}], offset))
        )


MARIADB: tuple[Contender[BinlogStage], ...] = (Ours(), _Stock())
MYSQL = (*MARIADB, _Debezium())
