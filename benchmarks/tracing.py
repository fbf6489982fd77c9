"""What tracing costs the listener: python -m benchmarks.tracing [ROWS [ROUNDS]].

The listener reads a backlog of ROWS rows of transactions that carry a trace, in turn with CDC_OTEL off and on. The
additional processor time is shown for 10,000 changes a second.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

from typer import echo

from benchmarks.enqueue import Stage
from harness.embedded_servers import PostgresServer, ValkeyServer

_RATE: Final = 10_000  # changes a second
_CONTEXT: Final = """SELECT pg_logical_emit_message(true, 'cdc_tasks', json_build_object('context', json_build_object(
    'traceparent', '00-' || md5(random()::text) || '-' || left(md5(random()::text), 16) || '-{flag}'))::text)"""
_INSERT: Final = "INSERT INTO items (status) SELECT 'new' FROM generate_series(1, {rows})"


def _transactions(rows: int, flag: str) -> str:
    """Return the SQL that writes a hundred rows, with the same number in each transaction."""
    one = f"{_CONTEXT.format(flag=flag)}; {_INSERT.format(rows=rows)}; COMMIT"
    return "; BEGIN; ".join([one] * (100 // rows))


_STATEMENTS: Final = {
    "sampled, 1 row a transaction": _transactions(1, "01"),
    "sampled, 10 rows a transaction": _transactions(10, "01"),
    "sampled, 100 rows a transaction": _transactions(100, "01"),
    "not sampled, 10 rows a transaction": _transactions(10, "00"),
    "no trace": _INSERT.format(rows=100),
}


class _Taker(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    collector = ThreadingHTTPServer(("127.0.0.1", 0), _Taker)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    on = {
        "CDC_OTEL": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
        "OTEL_BSP_MAX_QUEUE_SIZE": "100000",
    }
    with tempfile.TemporaryDirectory() as text, PostgresServer() as database, ValkeyServer() as broker:
        stage = Stage(database, broker, Path(text), rows, _STATEMENTS)
        for what in _STATEMENTS:
            found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
            for _ in range(rounds):
                for is_on, measured in found.items():
                    stage.environment = on if is_on else {}
                    measured.append(stage.backlog(what))
            (slow, cpu_off), (fast, cpu_on) = (
                [statistics.median(values) for values in zip(*found[is_on], strict=True)]
                for is_on in (False, True)
            )
            share = (cpu_on - cpu_off) * _RATE / 1e4
            echo(
                f"{what}: {slow:,.0f} a second off, {fast:,.0f} on; {cpu_off:.1f} and {cpu_on:.1f} µs each: "
                f"{share:+.1f} % of a processor at {_RATE:,} a second"
            )


if __name__ == "__main__":
    main()
