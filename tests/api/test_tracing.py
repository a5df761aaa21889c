"""Spans of OpenTelemetry: one for each request over HTTP, with nothing in it that anybody said, owns or is called."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from opentelemetry import trace
from opentelemetry._logs import set_logger_provider
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from test_auth import SECRET, bearer

from chatkeep import Store, open_store
from chatkeep.api.app import create_app
from chatkeep.settings import Settings
from servers.api import Api, serving

METHOD, STATUS, ROUTE, ERROR = "http.request.method", "http.response.status_code", "http.route", "error.type"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=value"}


@cache
def exporter() -> InMemorySpanExporter:
    """Where the spans of this process go: it can be given a provider once, and may run this file in parts."""
    made, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(made))
    trace.set_tracer_provider(provider)
    return made


@cache
def log_exporter() -> InMemoryLogRecordExporter:
    """The same for the log records of OpenTelemetry."""
    made = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]
    provider = LoggerProvider()
    provider.add_log_record_processor(SimpleLogRecordProcessor(made))
    set_logger_provider(provider)
    return made


@pytest.fixture
def spans() -> InMemorySpanExporter:
    """The spans of this test."""
    exporter().clear()
    return exporter()


@pytest.fixture
def logged() -> InMemoryLogRecordExporter:
    """The log records of this test."""
    log_exporter().clear()
    return log_exporter()


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    async with open_store("memory://") as store:
        yield store


@pytest.fixture
async def api(store: Store) -> AsyncIterator[Api]:
    async with serving(store, auth="jwt", jwt_secret=SECRET, max_body_bytes=1_000) as api:
        yield api


@asynccontextmanager
async def served(app: FastAPI, **options: Any) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of an application that has routes of the test's."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", **options))
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with httpx2.AsyncClient(base_url=url, timeout=10) as client:
            yield client
    finally:
        server.should_exit = True
        await running
        listener.close()


async def finished(spans: InMemorySpanExporter, number: int = 1) -> tuple[ReadableSpan, ...]:
    """The spans, which end a moment after the answer has gone out."""
    for _ in range(100):
        if len(spans.get_finished_spans()) >= number:
            break
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.01)
    found = spans.get_finished_spans()
    assert len(found) == number, [span.name for span in found]
    spans.clear()
    return found


def seen(span: ReadableSpan) -> tuple[str, dict[str, Any], StatusCode]:
    """What a span says."""
    assert span.kind is SpanKind.SERVER
    assert (span.status.description, span.events, span.links) == (None, (), ())
    return span.name, dict(span.attributes or {}), span.status.status_code


@pytest.mark.parametrize(
    ("method", "path", "route", "status"),
    [
        ("GET", "/healthz", "/healthz", 200),
        ("HEAD", "/healthz", "/healthz", 200),
        ("POST", "/api/conversations", "/api/conversations", 201),
        ("GET", "/api/conversations?cursor=zq7", "/api/conversations", 422),
        ("GET", "/api/conversations/zq7", "/api/conversations/{conversation_id}", 422),
        ("GET", f"/api/conversations/{'0' * 32}", "/api/conversations/{conversation_id}", 404),
        ("GET", "/api/docs/zq7", "/api/docs/{name}", 404),
        ("DELETE", "/zq7", None, 404),
    ],
)
async def test_a_request_is_a_span(
    api: Api, spans: InMemorySpanExporter, method: str, path: str, route: str | None, status: int
) -> None:
    """One server span, named by method and route template, with method, route and status and no other attribute."""
    reply = await api.client.request(method, path, headers=bearer("zq7"), json={} if method == "POST" else None)
    assert reply.status_code == status
    (span,) = await finished(spans)
    name, attributes, outcome = seen(span)
    assert name == (f"{method} {route}" if route else method)
    assert attributes == {METHOD: method, STATUS: status, **({ROUTE: route} if route else {})}
    assert outcome is StatusCode.UNSET
    assert span.parent is None


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (421, {"Host": "zq7.example"}, b""),
        (403, {"Origin": "https://zq7.example"}, b""),
        (401, {"Authorization": "Bearer zq7"}, b""),
        (413, {}, b"zq7" * 1_000),
    ],
)
async def test_refused_requests_are_spans(
    api: Api, spans: InMemorySpanExporter, status: int, headers: dict[str, str], body: bytes
) -> None:
    """A request that is not let in is a span with the method as its name, and no error of the server's."""
    reply = await api.client.post("/api/zq7", content=body, headers={**bearer("zq7"), **headers})
    assert reply.status_code == status
    (span,) = await finished(spans)
    assert seen(span) == ("POST", {METHOD: "POST", STATUS: status}, StatusCode.UNSET)


async def test_nothing_private_is_in_a_span(api: Api, spans: InMemorySpanExporter) -> None:
    """Owner, ids, titles, messages, searches, query and request headers stand nowhere in the spans of a whole talk."""
    headers = {**bearer("zq7owner"), "User-Agent": "zq7agent", "X-Request-ID": "zq7id", "Idempotency-Key": "zq7key"}
    made = await api.client.post("/api/conversations", json={"title": "zq7title"}, headers=headers)
    path = f"/api/conversations/{made.json()['id']}"
    said = await api.client.post(f"{path}/messages", json={"role": "user", "content": "zq7said"}, headers=headers)
    assert said.status_code == 201
    for target in (path, f"{path}/messages/{said.json()['id']}", "/api/search?q=zq7said", "/api/conversations?zq7=1"):
        await api.client.get(target, headers=headers)
    text = "".join(span.to_json() for span in await finished(spans, 6))
    for private in ("zq7", made.json()["id"], said.json()["id"], made.headers["x-request-id"], "127.0.0.1"):
        assert private not in text


async def test_a_clients_trace_goes_on(api: Api, spans: InMemorySpanExporter) -> None:
    """The span is a child of the one that traceparent names, with its tracestate, also where many come at once."""
    parents = [f"{number:016x}" for number in range(1, 21)]
    await asyncio.gather(
        *(api.client.get("/readyz", headers={**SAMPLED, "traceparent": f"00-{TRACE}-{id_}-01"}) for id_ in parents)
    )
    found = await finished(spans, len(parents))
    assert {f"{span.context.trace_id:032x}" for span in found if span.context} == {TRACE}
    assert sorted(f"{span.parent.span_id:016x}" for span in found if span.parent) == parents
    assert {span.context.trace_state.get("vendor") for span in found if span.context} == {"value"}
    assert len({span.context.span_id for span in found if span.context}) == len(parents)


async def test_what_a_client_does_not_sample(api: Api, spans: InMemorySpanExporter) -> None:
    """A client that does not record its trace causes no span, and one whose header is wrong begins none of its own."""
    await api.client.get("/healthz", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    await api.client.get("/healthz", headers={"traceparent": f"00-{'0' * 32}-{PARENT}-01"})
    await api.client.get("/healthz", headers={"traceparent": "zq7"})
    found = await finished(spans, 2)
    assert [span.parent for span in found] == [None, None]
    assert "zq7" not in "".join(span.to_json() for span in found)


async def test_a_store_that_is_down_is_an_error(api: Api, spans: InMemorySpanExporter) -> None:
    """A 503 marks the span, and says no more about it than its status."""
    await api.store.aclose()
    assert (await api.client.get("/readyz")).status_code == 503
    (span,) = await finished(spans)
    attributes = {METHOD: "GET", ROUTE: "/readyz", STATUS: 503, ERROR: "503"}
    assert seen(span) == ("GET /readyz", attributes, StatusCode.ERROR)


@pytest.fixture
def app(store: Store) -> FastAPI:
    """The application with routes that fail, and one that does work of its own."""
    app = create_app(store, Settings())

    @app.get("/fails/{name}")
    async def fails(name: str) -> None:
        raise RuntimeError(f"zq7 {name}")

    @app.get("/ends")
    async def ends() -> StreamingResponse:
        async def parts() -> AsyncIterator[str]:
            yield "begun"
            raise RuntimeError("zq7")

        return StreamingResponse(parts())

    @app.get("/works")
    async def works() -> None:
        with trace.get_tracer("test").start_as_current_span("inner"):
            await asyncio.sleep(0)

    return app


async def test_a_fault_is_an_error(app: FastAPI, spans: InMemorySpanExporter) -> None:
    """What nobody expected is a 500 on the span, without what the exception says."""
    async with served(app) as client:
        assert (await client.get("/fails/zq7")).status_code == 500
        (span,) = await finished(spans)
    attributes = {METHOD: "GET", ROUTE: "/fails/{name}", STATUS: 500, ERROR: "500"}
    assert seen(span) == ("GET /fails/{name}", attributes, StatusCode.ERROR)


async def test_a_fault_after_the_answer_began_is_an_error(
    app: FastAPI, spans: InMemorySpanExporter, logged: InMemoryLogRecordExporter
) -> None:
    """An answer that breaks off keeps the status it was begun with, and is an error; what the exception says is
    neither on the span nor in a log record of OpenTelemetry's."""
    async with served(app) as client:
        with pytest.raises(httpx2.RemoteProtocolError):
            await client.get("/ends")
        (span,) = await finished(spans)
    attributes = {METHOD: "GET", ROUTE: "/ends", STATUS: 200, ERROR: "RuntimeError"}
    assert seen(span) == ("GET /ends", attributes, StatusCode.ERROR)
    assert not logged.get_finished_logs()


async def test_work_within_a_request_is_below_its_span(app: FastAPI, spans: InMemorySpanExporter) -> None:
    """Spans that others make while a request is answered, such as the database driver's, are its children."""
    async with served(app) as client:
        await client.get("/works", headers=SAMPLED)
        inner, outer = await finished(spans, 2)
    assert (inner.name, outer.name) == ("inner", "GET /works")
    assert inner.parent == outer.context


async def test_a_method_that_a_client_made_up(app: FastAPI, spans: InMemorySpanExporter) -> None:
    """A method that nobody knows is told by the name that OpenTelemetry has for those."""
    async with served(app, http="h11") as client:
        assert (await client.request("ZQ7", "/healthz")).status_code == 405
        (span,) = await finished(spans)
    name, attributes, _ = seen(span)
    assert name.startswith("HTTP")
    assert attributes[METHOD] == "_OTHER"
    assert "zq7" not in span.to_json().lower()


WITHOUT = """
import asyncio, sys
sys.modules["opentelemetry.sdk"] = None
from servers.api import serving
from chatkeep import open_store

async def main():
    async with open_store("memory://") as store, serving(store) as api:
        for path in ("/healthz", "/api/conversations", "/absent"):
            reply = await api.client.get(path, headers={"traceparent": sys.argv[1]})
            print(reply.status_code)

asyncio.run(main())
"""


@pytest.mark.long  # importing all that the tests have installed takes seconds
def test_the_documented_command(tmp_path: Path) -> None:
    """What the extra brings is what OpenTelemetry's own defaults need, whose logs and counts go to nobody here."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("opentelemetry-instrument")), sys.executable, "-m", "chatkeep"]
    given = {"OTEL_TRACES_EXPORTER": "console", "CHATKEEP_DATABASE_URL": f"sqlite:///{tmp_path}/chat.db"}
    with (tmp_path / "said").open("w+") as said:
        process = subprocess.Popen(
            [*command, "serve", "--port", str(port)], stdout=said, stderr=said, env={**os.environ, **given}
        )
        try:
            transport = httpx2.HTTPTransport(retries=9)  # with a backoff: two minutes at most
            with httpx2.Client(transport=transport) as client:
                assert client.get(f"http://127.0.0.1:{port}/api/conversations").status_code == 200
            process.terminate()
            process.wait(60)
        finally:
            process.kill()
            process.wait()
        said.seek(0)
        text = said.read()
    assert "Failed to auto initialize" not in text
    assert '"http.route": "/api/conversations"' in text


def test_the_sdk_may_be_absent() -> None:
    """Without OpenTelemetry's SDK, of which FastAPI brings the API only, the server answers as it does with it."""
    command = [sys.executable, "-c", WITHOUT, SAMPLED["traceparent"]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert (done.stdout.split(), done.stderr) == (["200", "200", "404"], "")
