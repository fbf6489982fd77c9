"""OpenTelemetry: one trace from the request through the commit to the task, and to the message that it sends.

It is on with CDC_OTEL=true or `cdc_tasks.install(app, otel=True)`, and needs `pip install "cdc-tasks[otel]"`. While it
is off, nothing of OpenTelemetry is imported. OpenTelemetry's own variables, OTEL_…, set where spans go.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from cdc_tasks.extras import check_extra, needs_extras

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FIELDS", "is_on", "span", "start", "stop", "trace_fields", "turn_on"]

# W3C Trace Context and Baggage: https://www.w3.org/TR/trace-context, https://www.w3.org/TR/baggage
FIELDS: Final = ("traceparent", "tracestate", "baggage")
_NAME: Final = "cdc_tasks"

_asked_for: Final[list[bool]] = []  # by `install(app, otel=True)`


def turn_on() -> None:
    """Turn tracing on in this process. Raises MissingExtraError."""
    check_extra("otel")
    _asked_for.append(True)


def is_on() -> bool:
    """Return whether tracing is on. Raises MissingExtraError if a package is missing, and SettingsError."""
    return bool(_asked_for) or _is_set()


@cache
def _is_set() -> bool:
    if "CDC_OTEL" not in os.environ:  # so that the settings' library is not loaded needlessly
        return False
    from cdc_tasks.settings import TracingSettings, load

    if not load(TracingSettings).cdc_otel:
        return False
    check_extra("otel")
    return True


def trace_fields() -> dict[str, str]:
    """Return the current span as fields with W3C's names; empty if there is no span, or if tracing is off."""
    if not is_on():
        return {}
    from opentelemetry import propagate, trace

    if not trace.get_current_span().get_span_context().is_valid:
        return {}
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return {name: carrier[name] for name in FIELDS if carrier.get(name)}


@contextmanager
def span(name: str, **attributes: Any) -> Iterator[None]:
    """Run the block as a span below the current one; without a span if tracing is off."""
    if not is_on():
        yield
        return
    from opentelemetry import trace

    with trace.get_tracer(_NAME).start_as_current_span(name, attributes=attributes):
        yield


def start(service: str) -> None:
    """Send the spans of this process by OTLP over HTTP, unless the application has its own provider.

    `service` is the name of the service, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES gives one.
    """
    with needs_extras("otel"):
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return
    resource = Resource.create()
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": service}))
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def stop() -> None:
    """Send the remaining spans."""
    from opentelemetry import trace

    if (shutdown := getattr(trace.get_tracer_provider(), "shutdown", None)) is not None:
        shutdown()
