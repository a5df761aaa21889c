"""A span for each request, where OpenTelemetry is installed (extra `tracing`) and set up by its own variables."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

trace: Any
extract: Any
try:
    from opentelemetry import trace
    from opentelemetry.propagate import extract
except ModuleNotFoundError:  # the extra is not installed
    trace = None


class Span:
    """One request's span; nothing where there are no traces."""

    def __init__(self, span: Any = None) -> None:
        self._span = span

    def end(self, method: str, route: str | None, status: int) -> None:
        """Say what became of the request."""
        if self._span is None:
            return
        self._span.update_name(f"{method} {route}" if route else method)
        self._span.set_attribute("http.response.status_code", status)
        if route:
            self._span.set_attribute("http.route", route)
        if status >= 500:
            self._span.set_status(trace.Status(trace.StatusCode.ERROR))


@contextmanager
def span(method: str, headers: list[tuple[bytes, bytes]]) -> Iterator[Span]:
    """A span that continues the client's trace."""
    if trace is None:
        yield Span()
        return
    carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers if name.startswith(b"trace")}
    tracer = trace.get_tracer("chatkeep")
    with tracer.start_as_current_span(method, extract(carrier), kind=trace.SpanKind.SERVER) as current:
        current.set_attribute("http.request.method", method)
        yield Span(current)
