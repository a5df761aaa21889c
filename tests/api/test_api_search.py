"""Search and health over HTTP."""

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import pytest
import pytest_asyncio

from chatkeep import NewConversation, NewMessage, StoreUnavailable, open_store
from conftest import STORES
from servers.api import Api, assert_problem, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=STORES)
async def api(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    url = STORES[request.param](tmp_path_factory.mktemp("store"))
    async with open_store(url) as store, serving(store) as api:
        yield api


async def test_search_finds_own_messages(api: Api) -> None:
    """A hit is the message with its conversation's title and the text around the word; others' are not found."""
    path = await api.conversation(title="Tea")
    message = await api.say(path, "Gyokuro is brewed at 60 °C.")
    theirs = await api.store.create_conversation("ada", NewConversation())
    await api.store.append("ada", theirs.id, [NewMessage.model_validate({"role": "user", "content": "gyokuro"})])

    page = (await api.client.get("/api/search", params={"q": "GYOKURO brewed"})).json()

    assert page == {
        "items": [{"message": message, "title": "Tea", "snippet": "Gyokuro is brewed at 60 °C."}],
        "total": None,
        "next": None,
    }


async def test_search_pages(api: Api) -> None:
    """Hits come last stored first, page by page with the cursor, which goes with its words."""
    path = await api.conversation()
    said = [await api.say(path, f"matcha {number}") for number in range(5)]

    first = (await api.client.get("/api/search", params={"q": "matcha", "limit": "3"})).json()
    second = (await api.client.get("/api/search", params={"q": "matcha", "cursor": first["next"]})).json()

    found = [hit["message"]["id"] for hit in first["items"] + second["items"]]
    assert found == [message["id"] for message in said[::-1]]
    assert second["next"] is None
    other = await api.client.get("/api/search", params={"q": "sencha", "cursor": first["next"]})
    assert_problem(other, 422, "sencha", first["next"])


async def test_search_in_a_conversation(api: Api) -> None:
    """Only the messages of a conversation are found; one that is not there is 404, and what is no id 422."""
    path, other = await api.conversation(), await api.conversation()
    message = await api.say(path, "oolong and milk")
    await api.say(other, "oolong")

    where = {"q": "oolong", "conversation_id": message["conversation_id"]}
    hits = (await api.client.get("/api/search", params=where)).json()["items"]

    assert [hit["message"] for hit in hits] == [message]
    missing = await api.client.get("/api/search", params=where | {"conversation_id": str(uuid.uuid4())})
    assert_problem(missing, 404)
    assert_problem(await api.client.get("/api/search", params=where | {"conversation_id": "zq7marker"}), 422, "zq7")


async def test_search_with_phrases_and_exclusions(api: Api) -> None:
    """Quotes and a minus in `q` mean what they mean in the store; only excluding is refused, and says so."""
    path = await api.conversation()
    said = [await api.say(path, text) for text in ("hojicha with rice", "hojicha, rice and salt", "rice, hojicha")]

    hits = (await api.client.get("/api/search", params={"q": '"hojicha rice" -sugar'})).json()["items"]

    assert [hit["message"] for hit in hits] == [said[1]]
    refused = await api.client.get("/api/search", params={"q": "-zq7marker"})
    assert "wanted" in assert_problem(refused, 422, "zq7")["detail"]


@pytest.mark.parametrize("query", ["", "q=", "q=%20", "q=...", "q=a&limit=0", "q=a&limit=201", "q=a&zq7marker=1"])
async def test_search_refuses(api: Api, query: str) -> None:
    """A search needs a word, and a limit of 1 to 200."""
    assert_problem(await api.client.get(f"/api/search?{query}"), 422, "zq7marker")


async def test_search_with_too_many_words(api: Api) -> None:
    """The limit of words is named, the words are not."""
    reply = await api.client.get("/api/search", params={"q": " ".join(f"zq{n}" for n in range(40))})

    assert "32 words" in assert_problem(reply, 422, "zq39", "(got")["detail"]


async def test_search_finds_any_script(api: Api) -> None:
    """A part of a Japanese sentence is found; a search for other text gives an empty list."""
    path = await api.conversation()
    await api.say(path, "玉露は六十度で淹れます")

    hits = (await api.client.get("/api/search", params={"q": "六十度"})).json()["items"]

    assert [hit["message"]["content"] for hit in hits] == ["玉露は六十度で淹れます"]
    assert (await api.client.get("/api/search", params={"q": uuid.uuid4().hex})).json()["items"] == []


async def test_health(api: Api) -> None:
    """A running server says ok, and one whose store answers says so, too."""
    for path in ("/healthz", "/readyz"):
        reply = await api.client.get(path)
        assert (reply.status_code, reply.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize("error", [StoreUnavailable("the store is closed"), OSError("zq7marker")])
async def test_not_ready(api: Api, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """While the store does not answer, the server is alive and not ready."""

    async def ping() -> None:
        raise error

    monkeypatch.setattr(api.store, "ping", ping)

    assert_problem(await api.client.get("/readyz"), 503, "zq7marker")
    assert (await api.client.get("/healthz")).status_code == 200


async def test_not_ready_without_a_schema(tmp_path: Path) -> None:
    """A database without chatkeep's schema makes the server say 503, without the file's name."""
    apsw.Connection(str(tmp_path / "zq7marker.db")).close()
    opening = open_store(f"sqlite:///{tmp_path / 'zq7marker.db'}", migrate=False)
    async with opening as store, serving(store) as api:
        assert_problem(await api.client.get("/readyz"), 503, "zq7marker")
        assert_problem(await api.client.get("/api/conversations"), 503, "zq7marker")


async def test_search_that_is_off(tmp_path: Path) -> None:
    """A store without the index says that it cannot search."""
    async with open_store(STORES["sqlite"](tmp_path), search="off") as store, serving(store) as api:
        assert "search=off" in assert_problem(await api.client.get("/api/search?q=zq7marker"), 422, "zq7")["detail"]
