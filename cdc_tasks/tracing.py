"""OpenTelemetry: one trace from the request over the commit to the task, and to the message that it sends.

It is off unless CDC_OTEL=true, or `cdc_tasks.install(app, otel=True)`, and needs `pip install "cdc-tasks[otel]"`. Then
nothing of OpenTelemetry is imported. Where spans go is said with OpenTelemetry's own variables, OTEL_….
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
    """Let this process take part in traces; raises MissingExtraError."""
    check_extra("otel")
    _asked_for.append(True)


def is_on() -> bool:
    """Return whether it is on; raises MissingExtraError if a package is missing, SettingsError."""
    return bool(_asked_for) or _is_set()


@cache
def _is_set() -> bool:
    if "CDC_OTEL" not in os.environ:  # the settings' library is not loaded for nothing
        return False
    from cdc_tasks.settings import TracingSettings, load

    if not load(TracingSettings).cdc_otel:
        return False
    check_extra("otel")
    return True


def trace_fields() -> dict[str, str]:
    """Return what names the current span to others, by W3C's names; empty if there is none, or it is off."""
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
    """Let the block be a span below the current one; nothing if it is off."""
    if not is_on():
        yield
        return
    from opentelemetry import trace

    with trace.get_tracer(_NAME).start_as_current_span(name, attributes=attributes):
        yield


def start(service: str) -> None:
    """Send the spans of this process by OTLP over HTTP, unless the application has its own provider.

    `service` is the name of the service if OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say none.
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
    """Send what is left of the spans."""
    from opentelemetry import trace

    if (shutdown := getattr(trace.get_tracer_provider(), "shutdown", None)) is not None:
        shutdown()
