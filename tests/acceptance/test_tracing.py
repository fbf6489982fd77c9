"""One trace from the request over the commit to the task, and to the message that it sends."""

from __future__ import annotations

import threading
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

from opentelemetry.baggage import set_baggage
from opentelemetry.context import attach, detach
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import use_span

import cdc_tasks
from cdc_tasks import tracing
from harness.waiting import wait_until
from tests.acceptance.desk import running_desk

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from tests.conftest import Database


class _Collector:
    """An endpoint for OTLP over HTTP; it keeps the spans that it gets."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = ExportTraceServiceRequest.FromString(
                    self.rfile.read(int(self.headers["Content-Length"]))
                )
                for resource in request.resource_spans:
                    spans.extend(each for scope in resource.scope_spans for each in scope.spans)
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None: ...

        return Handler

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def chains(self) -> set[tuple[str, ...]]:
        """Return for each span without children its name and the names of those above it."""
        spans = {each.span_id: each for each in list(self.spans)}
        parents = {each.parent_span_id for each in spans.values()}
        return {tuple(_names(spans, each)) for each in spans.values() if each.span_id not in parents}


def _names(spans: dict[bytes, Any], span: Any) -> Iterator[str]:
    while span is not None:
        yield span.name
        span = spans.get(span.parent_span_id)


@contextmanager
def _request(collector: _Collector, name: str) -> Iterator[None]:
    """A request of the application's, as its own instrumentation traces it."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{collector.url}/v1/traces")))
    token = attach(set_baggage("tenant", "7"))
    with use_span(provider.get_tracer("shop").start_span(name), end_on_exit=True):
        yield
    detach(token)
    provider.shutdown()


def test_a_request_its_commit_the_tasks_and_the_messages_are_one_trace(
    database: Database, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("CDC_OTEL", "true")
    tracing._is_set.cache_clear()
    request.addfinalizer(tracing._is_set.cache_clear)
    with (
        _Collector() as collector,
        running_desk(
            database,
            CDC_OTEL="true",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            OTEL_BSP_SCHEDULE_DELAY="100",
            CDC_ROUTES="tests.acceptance.traced_routes:setup_router",
        ) as desk,
        closing(database.connect()) as connection,
    ):
        with _request(collector, "POST /tickets"), connection.cursor() as cursor:
            cdc_tasks.context(connection)
            cursor.execute("INSERT INTO tickets (title, assigned_to_id) VALUES ('Traced', 6)")
            cdc_tasks.enqueue(connection, "cdc_tasks.refresh_master_cache", "roles", queue="cdc_bulk")
            connection.commit()
        desk.insert_ticket("Untraced", desk.DORA)
        above = ("publish", "commit", "POST /tickets")
        expected = {
            (
                "delivery",
                "run/cdc_tasks.deliver",
                "apply_async/cdc_tasks.deliver",
                "run/cdc_tasks.notify_ticket_insert",
                *above,
            ),
            ("run/cdc_tasks.refresh_master_cache", *above),
        }
        wait_until(
            lambda: expected <= collector.chains(),
            timeout=30,
            what="the spans",
        )
        desk.wait_for_messages("Untraced", ("C0DORA", "New Ticket"))
    traced = {
        each.trace_id for each in collector.spans if each.name in ("commit", "POST /tickets", "publish")
    }
    assert len(traced) == 1
