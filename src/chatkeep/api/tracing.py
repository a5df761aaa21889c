"""A span for each request, if OpenTelemetry is configured. Spans hold no owners, ids, content, queries or headers."""

from collections.abc import Iterator
from contextlib import contextmanager

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace
from opentelemetry.propagate import extract

FASTAPI_TELEMETRY: TelemetryConfig = {"tracing": False, "logs": False}
"""Switches FastAPI's own telemetry off: its spans hold paths and queries, its log records exception messages."""

METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})


class Span:
    """The span of one request."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def end(self, method: str, route: str | None, status: int) -> None:
        """Record the route and the status."""
        name = method if method in METHODS else "HTTP"
        self._span.update_name(f"{name} {route}" if route else name)
        self._span.set_attribute("http.response.status_code", status)
        if route:
            self._span.set_attribute("http.route", route)
        if status >= 500:
            self.fail(str(status))

    def fail(self, error_type: str) -> None:
        """Set the status of the span to error."""
        self._span.set_attribute("error.type", error_type)
        self._span.set_status(trace.StatusCode.ERROR)


@contextmanager
def span(method: str, headers: list[tuple[bytes, bytes]]) -> Iterator[Span]:
    """Start a span that continues the client's trace."""
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        yield Span(trace.INVALID_SPAN)  # OpenTelemetry is not configured; its own no-op takes 12 µs
        return
    carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers if name.startswith(b"trace")}
    started = trace.get_tracer("chatkeep").start_as_current_span(
        method if method in METHODS else "HTTP",
        extract(carrier),
        kind=trace.SpanKind.SERVER,
        attributes={"http.request.method": method if method in METHODS else "_OTHER"},
        record_exception=False,  # its message may be private
        set_status_on_exception=False,
    )
    with started as current:
        traced = Span(current)
        try:
            yield traced
        except Exception as error:
            traced.fail(type(error).__name__)
            raise
