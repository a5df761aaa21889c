"""The description of the API: the OpenAPI document and Swagger UI."""

import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from chatkeep import Conversation, Message, NewConversation, NewMessage, Page, Source, StoreOptions, open_store
from chatkeep.api.answering import Answered
from chatkeep.api.app import create_app
from chatkeep.api.routes.documents import DocumentChunk, UploadedDocument
from chatkeep.api.routes.messages import MessageBatch, MessageRequest
from chatkeep.api.routes.providers import ShownProvider
from chatkeep.api.routes.stats import Stats
from chatkeep.documents import Document
from chatkeep.model import ConversationChange, Record, RunningAnswer
from chatkeep.projects import NewProject, Project
from chatkeep.providers import ApiConfig, LlmProvider, LlmProviderChange, NewLlmProvider
from chatkeep.retrieval.passages import Passage, Passages
from chatkeep.settings import Settings
from chatkeep.stores.memory.store import MemoryStore
from servers.api import Api, serving

COMMITTED = Path(__file__).parents[2] / "docs" / "openapi.json"
DOCUMENT: dict[str, Any] = create_app(MemoryStore("memory://", StoreOptions()), Settings()).openapi()


OPERATIONS = [
    (f"{method.upper()} {path}", operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]


UPLOAD = "POST /api/projects/{project_id}/documents"

WITHOUT_BODY = ("/answer", "/stop")
"""What ends the path of a POST that takes no body."""


def schemas_in(value: Any) -> Iterator[str]:
    """The names of the schemas that a part of the document refers to."""
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"].rpartition("/")[2]
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from schemas_in(inner)


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with open_store("memory://") as store, serving(store) as api:
        yield api


def test_committed_document_is_current() -> None:
    """docs/openapi.json is what `make openapi` writes: a change of the API shows in the diff."""
    printed = subprocess.run(  # the command that the Makefile runs
        [sys.executable, "-W", "error", "-m", "chatkeep.api"], check=True, capture_output=True, text=True
    ).stdout

    assert printed == COMMITTED.read_text()
    assert json.loads(printed) == DOCUMENT


def test_the_operations() -> None:
    """The API has these operations, by readable ids."""
    assert {name: operation["operationId"] for name, operation in OPERATIONS} == {
        "POST /api/conversations": "create_conversation",
        "GET /api/conversations": "list_conversations",
        "GET /api/conversations/{conversation_id}": "get_conversation",
        "PATCH /api/conversations/{conversation_id}": "update_conversation",
        "DELETE /api/conversations/{conversation_id}": "delete_conversation",
        "POST /api/conversations/{conversation_id}/messages": "append_message",
        "POST /api/conversations/{conversation_id}/messages/batch": "append_messages",
        "GET /api/conversations/{conversation_id}/messages": "list_messages",
        "GET /api/conversations/{conversation_id}/messages/{message_id}": "get_message",
        "PATCH /api/conversations/{conversation_id}/messages/{message_id}": "update_message",
        "DELETE /api/conversations/{conversation_id}/messages/{message_id}": "delete_message",
        "GET /api/conversations/{conversation_id}/messages/{message_id}/siblings": "list_siblings",
        "POST /api/conversations/{conversation_id}/messages/{message_id}/answer": "answer_again",
        "GET /api/conversations/{conversation_id}/messages/{message_id}/events": "follow_answer",
        "POST /api/conversations/{conversation_id}/messages/{message_id}/stop": "stop_answer",
        "POST /api/projects": "create_project",
        "GET /api/projects": "list_projects",
        "GET /api/projects/{project_id}": "get_project",
        "PATCH /api/projects/{project_id}": "update_project",
        "DELETE /api/projects/{project_id}": "delete_project",
        "POST /api/projects/{project_id}/conversations": "create_project_conversation",
        "GET /api/projects/{project_id}/conversations": "list_project_conversations",
        "POST /api/projects/{project_id}/documents": "upload_document",
        "GET /api/projects/{project_id}/documents": "list_documents",
        "GET /api/projects/{project_id}/documents/{document_id}": "get_document",
        "GET /api/projects/{project_id}/documents/{document_id}/chunks": "list_chunks",
        "DELETE /api/projects/{project_id}/documents/{document_id}": "delete_document",
        "GET /api/projects/{project_id}/search": "search_documents",
        "GET /api/llm-providers": "list_providers",
        "POST /api/llm-providers": "create_provider",
        "GET /api/llm-providers/{provider_id}": "get_provider",
        "PATCH /api/llm-providers/{provider_id}": "update_provider",
        "DELETE /api/llm-providers/{provider_id}": "delete_provider",
        "GET /api/search": "search_messages",
        "GET /api/stats": "answer_stats",
        "DELETE /api/me": "erase_me",
        "GET /healthz": "health",
        "GET /readyz": "readiness",
    }


@pytest.mark.parametrize(("name", "operation"), OPERATIONS)
def test_every_operation_is_described(name: str, operation: dict[str, Any]) -> None:
    """Each operation has a summary, a description, and an example of every body that it takes and gives."""
    assert operation["summary"]
    assert operation["description"]
    bodies = [operation["requestBody"]] if "requestBody" in operation else []
    for status, response in operation["responses"].items():
        assert response["description"]
        assert ("content" in response) == (status != "204")
        bodies.append(response)
    for body in bodies:
        for content in body.get("content", {}).values():
            assert content["schema"]
            assert content.get("example") or content.get("examples")
    for parameter in operation.get("parameters", []):
        assert parameter["description"]
    assert ("requestBody" in operation) == (name.startswith(("POST", "PATCH")) and not name.endswith(WITHOUT_BODY))


OTHER_ERRORS = {
    "POST /api/conversations/{conversation_id}/messages": {"502", "504"},
    "POST /api/conversations/{conversation_id}/messages/{message_id}/answer": {"502", "504"},
    # A kept reply, and what it shows was deleted.
    "POST /api/conversations": {"404"},
    "POST /api/projects": {"404"},
    "POST /api/llm-providers": {"404"},
    # One provider is the default, and one that conversations name stays.
    "PATCH /api/llm-providers/{provider_id}": {"409"},
    "DELETE /api/llm-providers/{provider_id}": {"409"},
    # A body that is read while it arrives.
    UPLOAD: {"400", "408"},
}
"""Errors that these operations have beside the others."""


@pytest.mark.parametrize(("name", "operation"), OPERATIONS)
def test_every_error_is_a_problem(name: str, operation: dict[str, Any]) -> None:
    """Each error of an operation is documented with its media type and one shape."""
    errors = {status for status in operation["responses"] if status >= "400"}
    for status in errors:
        [media_type] = operation["responses"][status]["content"]
        content = operation["responses"][status]["content"][media_type]
        assert media_type == "application/problem+json"
        assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
        assert content["example"]["status"] == int(status)
    expected = {"421", "500"}
    if name != "GET /healthz":
        expected |= {"503"}
    if "/api" in name:
        expected |= {"401", "403", "429"}
        assert operation["security"] == [{"bearer": []}]
    if "/api" in name and name not in ("DELETE /api/me", "GET /api/llm-providers"):
        expected |= {"422"}
    if "_id}" in name or name == "GET /api/search":
        expected |= {"404"}
    if "requestBody" in operation:
        expected |= {"413", "415"}
    if name.startswith("POST") and not name.endswith("/stop"):
        expected |= {"409"}
    expected |= OTHER_ERRORS.get(name, set())
    assert errors == expected


def test_patch_takes_two_types() -> None:
    """A merge patch may be sent as what it is, or as JSON."""
    patches = [operation["requestBody"]["content"] for name, operation in OPERATIONS if name.startswith("PATCH")]

    assert len(patches) == 4
    for content in patches:
        assert set(content) == {"application/json", "application/merge-patch+json"}


def test_created_things_have_a_path() -> None:
    """What is created alone has a Location; messages that are appended together are found in their page."""
    for name, operation in OPERATIONS:
        if "201" in operation["responses"]:
            headers = set(operation["responses"]["201"]["headers"])
            replayed = set() if name == UPLOAD else {"Idempotency-Replayed"}
            assert headers == replayed | (set() if name.endswith("/batch") else {"Location"})


def test_an_upload_is_a_form() -> None:
    """It has a file, which a page can choose, and may have a path."""
    [(media_type, content)] = dict(OPERATIONS)[UPLOAD]["requestBody"]["content"].items()
    schema = content["schema"]

    assert (media_type, schema["required"]) == ("multipart/form-data", ["file"])
    assert {name: each["type"] for name, each in schema["properties"].items()} == {
        "file": "string", "file_path": "string",
    }  # fmt: skip
    assert schema["properties"]["file"]["format"] == "binary"
    assert all(each["description"] for each in schema["properties"].values())


def test_filters_are_parameters() -> None:
    """A list can be filtered by what the store can filter by, with bounds; a label may be given several times."""
    parameters = {each["name"]: each["schema"] for each in DOCUMENT["paths"]["/api/conversations"]["get"]["parameters"]}

    filters = {"context_id", "project_id", "external_id", "label", "updated_after", "updated_before"}
    assert filters <= set(parameters)
    listed = DOCUMENT["paths"]["/api/projects/{project_id}/conversations"]["get"]["parameters"]
    of_project = {each["name"] for each in listed if each["in"] == "query"}
    assert of_project == set(parameters) - {"project_id"}
    label = parameters["label"]
    assert (label["type"], label["maxItems"]) == ("array", 32)
    assert label["items"]["maxLength"] == 65


def test_the_schemas_are_the_records() -> None:
    """Every record has one shape, that of the library, and nothing refers to a schema that is not there."""
    schemas = DOCUMENT["components"]["schemas"]

    for record in (
        Conversation, NewMessage, Source, NewProject, Project, Document, Passage, NewLlmProvider, ApiConfig,
    ):  # fmt: skip
        assert set(schemas[record.__name__]["properties"]) == set(record.model_fields)
    assert set(schemas["Message"]["properties"]) == set(RunningAnswer.model_fields)
    assert set(schemas["Message"]["required"]) == set(Message.model_fields)
    assert set(schemas["ShownProvider"]["properties"]) == set(LlmProvider.model_fields)
    assert set(schemas["MessageRequest"]["properties"]) == {*NewMessage.model_fields, "answer"}
    assert set(schemas["ConversationRequest"]["properties"]) == {*NewConversation.model_fields, "reuse_latest"}
    assert not [name for name in schemas if name.endswith(("-Input", "-Output", "ValidationError"))]
    assert set(schemas_in(DOCUMENT)) <= set(schemas)


def test_the_examples_are_valid() -> None:
    """What the document shows can be sent, and is what comes back."""
    paths = DOCUMENT["paths"]
    message = paths["/api/conversations/{conversation_id}/messages"]["post"]
    sent = [
        MessageRequest.model_validate(example["value"])
        for example in message["requestBody"]["content"]["application/json"]["examples"].values()
    ]
    shown = {part["type"] for each in sent for part in each.parts or ()}
    assert shown >= {"text", "reasoning", "tool_call", "tool_result", "file", "source", "data"}
    shown_replies = message["responses"]["201"]["content"]["application/json"]["examples"]
    Message.model_validate(shown_replies["appended"]["value"])
    Answered.model_validate(shown_replies["answered"]["value"])
    pending = message["responses"]["202"]["content"]["application/json"]["example"]
    RunningAnswer.model_validate(pending["assistant_message"])
    stats = paths["/api/stats"]["get"]["responses"]["200"]["content"]["application/json"]["example"]
    Stats.model_validate(stats)
    batch = paths["/api/conversations/{conversation_id}/messages/batch"]["post"]
    for example in batch["requestBody"]["content"]["application/json"]["examples"].values():
        MessageBatch.model_validate(example["value"])
    Page[Message].model_validate(batch["responses"]["201"]["content"]["application/json"]["example"])
    listed = paths["/api/conversations"]["get"]["responses"]["200"]["content"]["application/json"]["example"]
    Page[Conversation].model_validate(listed)
    for name, record in SHOWN.items():
        response = dict(OPERATIONS)[name]["responses"]["201" if name.startswith("POST") else "200"]
        record.model_validate(response["content"]["application/json"]["example"])
    for name, record in TAKEN.items():
        for example in dict(OPERATIONS)[name]["requestBody"]["content"]["application/json"]["examples"].values():
            record.model_validate(example["value"])


SHOWN: dict[str, type[Record]] = {
    "POST /api/projects": Project,
    "GET /api/projects": Page[Project],
    "GET /api/projects/{project_id}": Project,
    "PATCH /api/projects/{project_id}": Project,
    "POST /api/projects/{project_id}/conversations": Conversation,
    "GET /api/projects/{project_id}/conversations": Page[Conversation],
    UPLOAD: UploadedDocument,
    "GET /api/projects/{project_id}/documents": Page[Document],
    "GET /api/projects/{project_id}/documents/{document_id}": Document,
    "GET /api/projects/{project_id}/documents/{document_id}/chunks": Page[DocumentChunk],
    "GET /api/projects/{project_id}/search": Passages,
    "GET /api/llm-providers": Page[ShownProvider],
    "GET /api/llm-providers/{provider_id}": LlmProvider,
    "POST /api/llm-providers": LlmProvider,
    "PATCH /api/llm-providers/{provider_id}": LlmProvider,
}
"""What the examples of projects, documents and providers are."""

TAKEN: dict[str, type[Record]] = {
    "POST /api/llm-providers": NewLlmProvider,
    "PATCH /api/llm-providers/{provider_id}": LlmProviderChange,
    "PATCH /api/conversations/{conversation_id}": ConversationChange,
}
"""What the examples of these bodies are."""


async def test_served_document(api: Api) -> None:
    """The server gives the same document."""
    assert (await api.client.get("/api/openapi.json")).json() == DOCUMENT


async def test_swagger_ui_comes_from_here(api: Api) -> None:
    """The page and what it starts load nothing from another host, and everything that they name is there."""
    page = await api.client.get("/api/docs")
    start = await api.client.get("/api/docs/start.js")

    assert page.headers["content-type"].startswith("text/html")
    assert "validatorUrl: null" in start.text
    assert not re.search(r"//", page.text + start.text)
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text) + re.findall(r'url: "([^"]+)"', start.text)
    assert len(loaded) == 5
    for path in loaded:
        reply = await api.client.get(f"/api/{path}")
        assert reply.status_code == 200
        assert len(reply.content) > 100


async def test_only_the_files_of_swagger_ui_are_served(api: Api) -> None:
    """The folder of Swagger UI is no way to other files."""
    for name in ("__init__.py", "..%2F__init__.py", "%2e%2e/__init__.py", "x.css", ""):
        assert (await api.client.get(f"/api/docs/{name}")).status_code == 404
