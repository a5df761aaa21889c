"""Schemathesis against the whole OpenAPI document, and a corpus of hostile texts and bodies, on a real server.

`make fuzz` runs both at length; here it is a short run with fixed cases, on SQLite, and in `make apart` on servers.
"""

import json
import os
import re
import subprocess
import sysconfig
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx2
import pytest
from hostile import BODIES, TEXTS
from test_server import served

from chatkeep.keys import SCOPES
from chatkeep.values import clean_text
from conftest import STORES
from servers.others import AUTH, Others, bearer

EXAMPLES = os.environ.get("CHATKEEP_FUZZ_EXAMPLES", "5")
"""Cases for each operation and phase; `make fuzz` says 500."""

IS_LONG = "CHATKEEP_FUZZ_EXAMPLES" in os.environ
WORST_WAIT = 1.0
"""Most seconds that another owner's request may take on a busy machine."""

MOST_REFUSED = 0.25
"""Largest share of an operation's requests that may be 401 or 403; a check sends one of them with a wrong token."""

DOCUMENT = json.loads((Path(__file__).parents[2] / "docs" / "openapi.json").read_text())
OPERATIONS = {f"{method.upper()} {path}" for path, methods in DOCUMENT["paths"].items() for method in methods}

SCHEMATHESIS = Path(sysconfig.get_path("scripts")) / "schemathesis"


CONFIG = """
[checks]
enabled = true

[checks.positive_data_acceptance]
expected-statuses = ["2xx", "401", "403", "404", "409", "422", "429"]

[[operations]]
include-name = "PATCH /api/conversations/{conversation_id}"
checks.ensure_resource_availability.enabled = false
"""
"""What may become of a request that fits the document: 422, too, but only for the reasons in UNSAID. That a status is
one of the operation's, and none of the server's failures, are checks of their own. A conversation that was just
created is there, but a 404 of its PATCH may mean the message that `head_id` names."""

UNSAID = (
    # A schema has one parameter or header alone, and neither what there is nor what was sent before.
    "query .+ cannot be used together.*",
    "a page begins at a cursor or at an offset, not at both",
    "query a page can begin at most 10,000 items into the list; .+",
    "query `to` must be after `from`, by at most 366 days",
    "the cursor is not one that chatkeep gave",
    "the Idempotency-Key header and the message's id differ; send one of them",
    "this idempotency key was used for another request; take a new one",
    "there is no such llm_provider_id; .+",
    "project_id must be the project of the path; leave it out",
    "only a message of the user is answered",
    # What a text or a file has to be, beyond its characters; and JSON Schema takes 1.0 for an integer.
    "a search needs at least one word.*",
    r".*\w+_tokens must be a whole number",
    r".*duration_ms must be a whole number",
    r".*_span\.(start|end) must be a whole number",
    "api_config.base_url must be a URL such as .+",
    "api_config.api_key_env must be CHATKEEP_PROVIDER_ and .+",
    "body [A-Z_]+ is only for its provider's own host; .+",
    "body background is only for the provider openai",
    "api_config.settings settings: .+",
    "(it is|it has|its text is|the file is empty).+",
    "file_path must be a relative path such as .+",
    # How the fields of a message fit together.
    r"(body|messages\.\d+) content or parts must be given",
    r"(body|messages\.\d+) a new message cannot be (deleted|in progress)",
    r"(body|messages\.\d+) the content of a (user|system) message must not be blank",
    r".*_span a span ends at or after its start",
    # The tool draws a field `body` if a schema has a `not`, and asks for the project of a conversation in none.
    "body has an unknown field; known are id, role, content, .+, answer",
    "project_id must be a UUID, such as .+",
)
"""Why a request that fits the document may be 422: what a schema cannot say, or could only by repeating itself."""

SERVERS = [pytest.param(name, marks=pytest.mark.apart) for name in ("postgres", "mongodb")]


@pytest.fixture(params=["sqlite", *SERVERS])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of each kind that a server of its own can use."""
    return STORES[request.param](tmp_path)


def is_unsaid(reason: str) -> bool:
    """Whether the document cannot say that a request is refused for this reason."""
    return any(re.fullmatch(pattern, reason, re.DOTALL) for pattern in UNSAID)


class Sent(NamedTuple):
    """A request of schemathesis's with a token, and its response."""

    operation: str
    is_valid: bool
    """Whether it fits the document."""
    status: int
    body: bytes

    @property
    def reasons(self) -> list[str]:
        """Why it was refused."""
        problem: dict[str, Any] = json.loads(self.body)
        return [f"{each['field']} {each['message']}" for each in problem.get("errors", ())] or [problem["detail"]]


def sent(report: Path) -> Iterator[Sent]:
    """What the report has, without what the check `ignored_auth` sends without a token."""
    with report.open() as lines:
        for line in lines:
            scenario = json.loads(line).get("ScenarioFinished", {}).get("recorder", {})
            for key, exchange in scenario.get("interactions", {}).items():
                case, response = scenario["cases"][key]["value"], exchange["response"]
                if "Authorization" in exchange["request"]["headers"]:
                    is_valid = case["meta"]["generation"]["mode"] == "positive"
                    body = b64decode(response["content"]["$base64"])
                    yield Sent(f"{case['method']} {case['path']}", is_valid, response["status_code"], body)


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_no_case_breaks_the_document(tmp_path: Path, url: str) -> None:
    """No 5xx, no status and no body that the document does not name, nothing let in without a token.

    Nearly all requests have to be let in, so that they say something.
    """
    settings = {**AUTH, "failure_limit": "100000/second", "provider": "scripted-fast", "turn_limit": "0"}
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    report = tmp_path / "report.ndjson"
    with served(tmp_path, database_url=url, log_level="warning", **settings) as (_, client):
        token = bearer("ada", " ".join(SCOPES))["Authorization"]  # DELETE /api/me would delete an API key
        line = [
            str(SCHEMATHESIS), "run", f"{client.base_url}/api/openapi.json".replace("//api", "/api"),
            "-H", f"Authorization: {token}", "-n", EXAMPLES, "--seed", "1",
            "--generation-deterministic", "--continue-on-failure", "--report-ndjson-path", str(report),
        ]  # fmt: skip
        done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    assert "Traceback" not in (tmp_path / "log").read_text()
    tried, refused, refusals = Counter[str](), Counter[str](), set[tuple[str, str]]()
    for each in sent(report):
        tried[each.operation] += 1
        refused[each.operation] += each.status in (401, 403)
        if each.is_valid and each.status == 422:
            refusals |= {(each.operation, reason) for reason in each.reasons if not is_unsaid(reason)}
    assert set(tried) >= OPERATIONS
    assert not {operation for operation, count in refused.items() if count > MOST_REFUSED * tried[operation]}
    assert not refusals


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
    config = {"instructions": text, "settings": {text: [text]}}
    provider = {"provider_name": "openai-chat", "model_name": label, "api_config": config}
    yield "POST", "/api/llm-providers", provider
    yield "POST", "/api/llm-providers", {**provider, "api_config": {"base_url": text, "api_key_env": text}}
    yield "GET", "/api/llm-providers", None
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
        client.headers.update(bearer("ada", " ".join(SCOPES)))
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
        places += [("POST", "/api/conversations", body), ("PATCH", path, body), ("POST", "/api/llm-providers", body)]
        replies, others = watched(server, places, **{"Idempotency-Key": name})
        seen = f"{others.cpu:6.2f} s of CPU, the others waited {others.worst * 1e3:5.0f} ms at most"
        print(f"{name:32} {seen}, {others.grown >> 20:4} MiB more memory")
        if not is_bounded(replies, others):
            unbounded.append(name)
    assert not unbounded
