"""Answers from documents over HTTP, as a client sees them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chatkeep import Store, open_store
from chatkeep.answers import failures
from chatkeep.answers.extractive import BEGINNING
from servers.api import Api, assert_problem, serving
from servers.model_script import Answer, Call
from servers.models import fake_openai

KEY = "CHATKEEP_PROVIDER_SOURCED"
SECRET = "sk-planted-in-the-environment"
GUIDE = """# Herbs

## Sage

Sage likes the sun, and dry ground.

## Mint

Mint likes the shade.
"""


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    async with open_store(store_url) as store:
        yield store


async def conversation(api: Api) -> str:
    """A conversation in a project with a document, as its path."""
    project = (await api.client.post("/api/projects", json={"name": "Herbs"})).json()["id"]
    files = {"file": ("herbs.md", GUIDE.encode(), "text/markdown")}
    stored = await api.client.post(f"/api/projects/{project}/documents", files=files)
    assert stored.status_code == 201, stored.text
    made = await api.client.post(f"/api/projects/{project}/conversations", json={})
    return f"/api/conversations/{made.json()['id']}"


async def use(api: Api, url: str, **more: object) -> None:
    """Make a model server the default provider."""
    config = {"base_url": url, "api_key_env": KEY}
    new = {"provider_name": "openai-chat", "model_name": "m1", "is_default": True, "api_config": config, **more}
    assert (await api.client.post("/api/llm-providers", json=new)).status_code == 201


async def test_without_a_model(store: Store) -> None:
    """A fresh server quotes the document, with its place, and the reply has both messages."""
    async with serving(store) as api:
        talk = await conversation(api)
        reply = await api.client.post(f"{talk}/messages", json={"content": "Where does sage like to grow?"})
        assert reply.status_code == 201, reply.text
        question, answer = reply.json()["user_message"], reply.json()["assistant_message"]
        assert (question["role"], answer["status"], answer["model"]) == ("user", "complete", "extractive")
        assert answer["content"].startswith(BEGINNING)
        (source,) = answer["sources"]
        assert (source["file_path"], source["header_anchor"]) == ("herbs.md", "#sage")
        assert "Sage likes the sun, and dry ground." in source["quote"]
        span = source["document_span"]
        assert GUIDE[span["start"] : span["end"]] == source["quote"]
        again = (await api.client.get(f"{talk}/messages")).json()["items"]
        assert again == [question, answer]


async def test_by_a_model(store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A model searches in the real index, and cites; its key is in no reply and no log."""
    monkeypatch.setenv(KEY, SECRET)
    caplog.set_level("DEBUG", "chatkeep")
    script = [
        Answer(calls=[Call("search_documents", ['{"query": "sage sun"}'])]),
        Answer(text=["Sage likes the sun [1]."]),
    ]
    async with fake_openai(script) as fake, serving(store) as api:
        await use(api, fake.url)
        talk = await conversation(api)
        reply = await api.client.post(f"{talk}/messages", json={"content": "Who likes the sun?"})
        answer = reply.json()["assistant_message"]
        assert answer["content"] == "Sage likes the sun [1]."
        assert [source["header_anchor"] for source in answer["sources"]] == ["#sage"]
        assert fake.requests[0].headers["authorization"] == f"Bearer {SECRET}"
        shown = reply.text + (await api.client.get("/api/llm-providers")).text
    assert SECRET not in shown + caplog.text


FAULTS = {
    "refused": (Answer(status=401), 502, failures.REFUSED_KEY),
    "busy": (Answer(status=429), 502, failures.BUSY),
    "gone": (Answer(text=["a"] * 5, trouble="reset", at=[1]), 502, failures.CUT_OFF),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_failures(
    store: Store, fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A clear 5xx; the question is there, and sending it again changes nothing."""
    monkeypatch.setenv(KEY, SECRET)
    caplog.set_level("CRITICAL", "asyncio")
    answer, status, reason = FAULTS[fault]
    async with fake_openai([answer]) as fake, serving(store) as api:
        await use(api, fake.url)
        talk = await conversation(api)
        question = {"id": "01a22e2e-de5b-78e8-85a1-578298c0b081", "content": "Who likes the sun?"}
        for _ in range(2):
            problem = assert_problem(await api.client.post(f"{talk}/messages", json=question), status, SECRET, fake.url)
            assert problem["detail"] == reason
        said = (await api.client.get(f"{talk}/messages")).json()["items"]
        assert [(each["role"], each["status"]) for each in said] == [("user", "complete"), ("assistant", "failed")]
        assert fake.creates <= 1
    assert SECRET not in caplog.text


async def test_a_file_of_tools_that_is_not_valid(store: Store, tmp_path: Path) -> None:
    """The server does not start with it."""
    file = tmp_path / "mcp.json"
    file.write_text('{"mcpServers": {"x": {}}}')
    with pytest.raises(ValueError, match=r"mcp\.json"):
        serving(store, mcp_config=str(file))
