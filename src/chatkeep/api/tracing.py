"""A span for each request, where OpenTelemetry is set up: without owners, ids, content, queries and headers."""

from collections.abc import Iterator
from contextlib import contextmanager

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace
from opentelemetry.propagate import extract

OF_FASTAPI: TelemetryConfig = {"tracing": False, "logs": False}
"""For `FastAPI(telemetry=…)`: its own spans hold paths and queries, its log records what exceptions say."""

METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})


class Span:
    """One request's span."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def end(self, method: str, route: str | None, status: int) -> None:
        """Say what became of the request."""
        name = method if method in METHODS else "HTTP"
        self._span.update_name(f"{name} {route}" if route else name)
        self._span.set_attribute("http.response.status_code", status)
        if route:
            self._span.set_attribute("http.route", route)
        if status >= 500:
            self.fail(str(status))

    def fail(self, kind: str) -> None:
        """Mark it as an error of this kind."""
        self._span.set_attribute("error.type", kind)
        self._span.set_status(trace.StatusCode.ERROR)


@contextmanager
def span(method: str, headers: list[tuple[bytes, bytes]]) -> Iterator[Span]:
    """A span that continues the client's trace."""
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        yield Span(trace.INVALID_SPAN)  # nobody has set OpenTelemetry up: its own way to do nothing takes 12 µs
        return
    carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers if name.startswith(b"trace")}
    begun = trace.get_tracer("chatkeep").start_as_current_span(
        method if method in METHODS else "HTTP",
        extract(carrier),
        kind=trace.SpanKind.SERVER,
        attributes={"http.request.method": method if method in METHODS else "_OTHER"},
        record_exception=False,  # what it says may be private
        set_status_on_exception=False,
    )
    with begun as current:
        traced = Span(current)
        try:
            yield traced
        except Exception as error:
            traced.fail(type(error).__name__)
            raise
