"""Schemathesis against the whole OpenAPI document, and a corpus of hostile texts and bodies, on a real server.

`make fuzz` runs both at length; here it is a short run with fixed cases, on SQLite alone in `make test`.
"""

import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from hostile import BODIES, TEXTS
from test_server import served

from chatkeep.values import clean_text
from conftest import STORES
from servers.others import AUTH, Others, bearer

EXAMPLES = os.environ.get("CHATKEEP_FUZZ_EXAMPLES", "5")
"""Cases for each operation and phase; `make fuzz` says 500."""

IS_LONG = "CHATKEEP_FUZZ_EXAMPLES" in os.environ
WORST_WAIT = 1.0
"""Most seconds that another owner's request may take on a busy machine."""

SCHEMATHESIS = Path(sysconfig.get_path("scripts")) / "schemathesis"


CONFIG = """
[[operations]]
include-path = "/api/stats"
checks.positive_data_acceptance.expected-statuses = ["2xx", "401", "403", "422", "429"]

[[operations]]
include-path = "/api/conversations/{conversation_id}/messages/{message_id}/answer"
checks.positive_data_acceptance.expected-statuses = ["2xx", "401", "403", "404", "409", "422", "429", "5xx"]

[[operations]]
include-name = ["GET /api/projects", "GET /api/projects/{project_id}/documents"]
checks.positive_data_acceptance.expected-statuses = ["2xx", "401", "403", "404", "422", "429"]

[[operations]]
include-name = "POST /api/projects/{project_id}/documents"
checks.positive_data_acceptance.expected-statuses = ["2xx", "401", "403", "404", "409", "422", "429", "503"]
"""
"""What the document cannot say: one time has to be after the other, only a message of the user's is answered, a page
has no cursor, and not every file is a text."""

LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("postgres", "mongodb")]


@pytest.fixture(params=["sqlite", *LONG])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of each kind that a server of its own can use."""
    return STORES[request.param](tmp_path)


@pytest.mark.timeout(3_600)
def test_no_case_breaks_the_document(tmp_path: Path, url: str) -> None:
    """No 5xx, no status and no body that the document does not name, nothing let in without a token."""
    settings = {"auth": "jwt", "jwt_secret": "s" * 64, "rate_limit": "0", "failure_limit": "100000/second"}
    settings |= {"provider": "scripted-fast", "turn_limit": "0"}
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    with served(tmp_path, database_url=url, log_level="warning", **settings) as (_, client):
        command = [sys.executable, "-m", "chatkeep", "keys", "create", "ada", "--database-url", url]
        key = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        line = [
            str(SCHEMATHESIS), "run", f"{client.base_url}/api/openapi.json".replace("//api", "/api"),
            "-H", f"Authorization: Bearer {key}", "--checks", "all", "-n", EXAMPLES, "--seed", "1",
            "--generation-deterministic", "--continue-on-failure",
        ]  # fmt: skip
        done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    assert re.search(r"Tested: 33\b", done.stdout)
    assert "Traceback" not in (tmp_path / "log").read_text()


# --- the corpus -------------------------------------------------------------------------------------------

type Request = tuple[str, str, Any]


def texts() -> Iterator[tuple[str, str]]:
    """Each hostile text, as long as a user may write; short if the corpus is."""
    for name, make in TEXTS.items():
        yield name, make(9_000 if IS_LONG else 1_000)


def of_type(text: str) -> list[dict[str, str]]:
    """Parts whose text becomes the content."""
    return [{"type": "text", "text": text}] * 2


def requests(path: str, text: str) -> Iterator[Request]:
    """A request for each place that takes a text: method, URL, body."""
    label, escaped = text[:255], quote(text[:5_000], errors="surrogatepass")  # the client takes no longer URL
    source = {
        "document_id": "0190f0f0-0000-7000-8000-000000000001",
        "file_path": text[:4_096],
        "header_anchor": label,
        "similarity_score": 0.5,
    }
    yield "POST", f"{path}/messages", {"role": "user", "content": text, "external_id": label, "sources": [source]}
    yield "POST", f"{path}/messages", {"role": "assistant", "content": text * 20, "metadata": {text: [text]}}
    labels = dict.fromkeys(("title", "context_id", "external_id"), label)
    yield "POST", "/api/conversations", {**labels, "metadata": {text: {text: text}}}
    yield "POST", "/api/conversations", {"title": text}
    yield "POST", f"{path}/messages", {"role": "assistant", "parts": [{"type": label, text: text}, *of_type(text)]}
    yield "POST", f"{path}/messages/batch", {"messages": [{"role": "tool", "content": text, "model": label}] * 3}
    yield "PATCH", path, {"title": label, "metadata": {text: text}, "labels": [text[:64]]}
    yield "GET", path, None
    yield "GET", f"{path}/messages", None
    yield "GET", f"/api/conversations?context_id={escaped[:2_000]}", None
    yield "GET", f"/api/conversations?label={quote(text[:64], errors='surrogatepass')}", None
    yield "GET", f"/api/conversations/{quote(label, safe='', errors='surrogatepass')}", None
    yield "GET", f"/api/search?q={escaped}", None
    yield "GET", f"/api/search?q={quote(text[:190], errors='surrogatepass')}", None


def send(client: httpx2.Client, request: Request, **headers: str) -> httpx2.Response:
    """Send a request, whose body is JSON with all text escaped, or bytes."""
    method, url, body = request
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    return client.request(method, url, content=content, headers={"Content-Type": "application/json", **headers})


def conversation(client: httpx2.Client) -> str:
    """Create a conversation and return its path."""
    return f"/api/conversations/{client.post('/api/conversations', json={}).json()['id']}"


@pytest.fixture
def server(tmp_path: Path, url: str) -> Iterator[tuple[httpx2.Client, int]]:
    """The client of one of two owners, and the process of the server; it logs no traceback."""
    with served(tmp_path, database_url=url, log_level="warning", **AUTH) as (process, client):
        client.timeout = 600
        client.headers.update(bearer("ada"))
        yield client, process.pid
    assert "Traceback" not in (tmp_path / "log").read_text()


def watched(
    server: tuple[httpx2.Client, int], requests: list[Request], **headers: str
) -> tuple[list[httpx2.Response], Others]:
    """Send the requests, and again if others waited long: a machine may be busy once. Returns the replies."""
    client, pid = server
    for _ in range(2):
        with Others(str(client.base_url), pid) as others:
            replies = [send(client, request, **headers) for request in requests]
        if others.worst < WORST_WAIT:
            break
    return replies, others


def is_bounded(replies: list[httpx2.Response], others: Others) -> bool:
    """Whether the server answered without failing, others were not kept waiting, and it cost what it may."""
    answered = {reply.status_code for reply in replies} <= {200, 201, 404, 422}
    return answered and others.worst < WORST_WAIT and others.cpu < len(replies) and others.grown < 320 << 20


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_no_hostile_text_stops_the_others(server: tuple[httpx2.Client, int]) -> None:
    """Whatever a text is made of: every route takes or refuses it, returns it unchanged, and nobody waits for it."""
    unbounded = []
    for name, text in texts():
        replies, others = watched(server, list(requests(conversation(server[0]), text)))
        print(f"{name:32} {others.cpu:6.2f} s of CPU, the others waited {others.worst * 1e3:5.0f} ms at most")
        if replies[0].status_code == 201:
            assert replies[0].json()["content"] == clean_text(text)
        if not is_bounded(replies, others):
            unbounded.append(name)
    assert not unbounded


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_no_hostile_body_stops_the_others(server: tuple[httpx2.Client, int]) -> None:
    """Whatever a body of 8 MiB is made of: every route takes or refuses it within a second of CPU, and nobody waits."""
    unbounded = []
    path = conversation(server[0])
    for name, make in list(BODIES.items())[:: 1 if IS_LONG else 6]:
        body = make()
        places = [("POST", f"{path}/messages{tail}", body) for tail in ("", "/batch")]
        places += [("POST", "/api/conversations", body), ("PATCH", path, body)]
        replies, others = watched(server, places, **{"Idempotency-Key": name})
        seen = f"{others.cpu:6.2f} s of CPU, the others waited {others.worst * 1e3:5.0f} ms at most"
        print(f"{name:32} {seen}, {others.grown >> 20:4} MiB more memory")
        if not is_bounded(replies, others):
            unbounded.append(name)
    assert not unbounded
