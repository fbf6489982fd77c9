"""Spans of published transactions: `commit`, from the commit until it is read, and below it `publish`.

A transaction with a trace (W3C traceparent in its context) has these two for each batch that it is in. Its
tasks' messages name `publish` as their parent. A transaction without a trace, or with an unsampled one, has none.

Two spans cost a tenth of a millisecond. So only a hundred transactions a second have them. The tasks of the others
name the span that the transaction itself names: the trace continues without these two.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from cdc_tasks import tracing
from cdc_tasks.changes import Context

if TYPE_CHECKING:
    from datetime import datetime

    from opentelemetry.trace import Span

__all__ = ["Spans", "make_spans"]

_MOST: Final = 100  # transactions a second that get spans
_SAMPLED: Final = 1  # a flag of traceparent's
_NOTHING: Final[Mapping[str, str]] = {}


def make_spans() -> Spans | None:
    """Return the spans if tracing is on, and start to send them."""
    if not tracing.is_on():
        return None
    tracing.start("cdc-listener")
    return Spans()


class Spans:
    """The spans of the batch that is being published."""

    def __init__(self) -> None:
        from opentelemetry import trace

        self._tracer = trace.get_tracer("cdc_tasks.listener")
        self._second, self._made = 0.0, 0  # start of the current second, and transactions with spans in it
        self._open: dict[int, tuple[Context, Span, Mapping[str, str]]] = {}  # by the context's identity

    def headers(self, change: Any) -> Mapping[str, str]:
        """Return the headers that name the trace to the tasks of this change; its spans begin at the first call."""
        context: Context | None = change.commit.context
        if context is None:
            return _NOTHING
        if (found := self._open.get(id(context))) is not None:
            return found[2]
        given = {name: text for name in tracing.FIELDS if isinstance(text := context.values.get(name), str)}
        if not _is_sampled(given.get("traceparent", "")) or not self._has_room():
            return given
        span, headers = self._begin(given, getattr(change.commit, "committed_at", None))
        self._open[id(context)] = context, span, headers
        return headers

    def _has_room(self) -> bool:
        now = time.monotonic()
        if now - self._second >= 1:
            self._second, self._made = now, 0
        self._made += 1
        return self._made <= _MOST

    def _begin(
        self, given: Mapping[str, str], committed_at: datetime | None
    ) -> tuple[Span, Mapping[str, str]]:
        from opentelemetry import propagate, trace

        parent, now = propagate.extract(given), time.time_ns()
        if committed_at is not None:
            at = min(int(committed_at.timestamp() * 1e9), now)
            commit = self._tracer.start_span("commit", context=parent, start_time=at)
            commit.end(now)
            parent = trace.set_span_in_context(commit, parent)
        span = self._tracer.start_span(
            "publish", context=parent, kind=trace.SpanKind.PRODUCER, start_time=now
        )
        headers: dict[str, str] = {}
        propagate.inject(headers, trace.set_span_in_context(span, parent))
        return span, headers

    def end(self, error: BaseException | None = None) -> None:
        """End the spans: the batch is published, or failed with this error."""
        for _, span, _ in self._open.values():
            if error is not None:
                span.record_exception(error)
            span.end()
        self._open.clear()


def _is_sampled(traceparent: str) -> bool:
    try:
        return bool(int(traceparent[-2:], 16) & _SAMPLED)
    except ValueError:
        return False
