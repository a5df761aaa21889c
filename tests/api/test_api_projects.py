"""Projects, their conversations and their documents over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from pydantic_ai.embeddings import TestEmbeddingModel

from chatkeep import open_store
from chatkeep.retrieval.embedding import Embedder, Embedders
from conftest import STORES
from servers.api import Api, assert_problem, embedding, serving

PATH = "/api/projects"
UNKNOWN = f"{PATH}/{uuid4()}"


@pytest.fixture(params=["memory", "sqlite"])
async def api(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Api]:
    """A server whose projects may have three documents."""
    async with open_store(STORES[request.param](tmp_path)) as store, serving(store, max_documents=3) as api:
        yield api


async def made(api: Api, **values: Any) -> str:
    """Create a project and return its path."""
    reply = await api.client.post(PATH, json={"name": "Tea", **values})
    assert reply.status_code == 201, reply.text
    return str(reply.headers["location"])


async def sent(api: Api, project: str, text: str, path: str = "tea/green.md") -> httpx2.Response:
    """Upload a text."""
    return await api.client.post(
        f"{project}/documents", files={"file": (path, text.encode())}, data={"file_path": path}
    )


async def items(api: Api, path: str, **query: Any) -> list[dict[str, Any]]:
    """The items of a page."""
    reply = await api.client.get(path, params=query)
    assert reply.status_code == 200, reply.text
    found: list[dict[str, Any]] = reply.json()["items"]
    return found


# --- projects -----------------------------------------------------------------------------------------------


async def test_a_project_is_created_read_changed_and_deleted(api: Api) -> None:
    """The project is what was sent, a merge patch changes it, and it is gone when it was deleted."""
    reply = await api.client.post(PATH, json={"name": "Tea", "metadata": {"language": "en", "stars": 1}})
    project = reply.json()
    assert (reply.status_code, reply.headers["location"]) == (201, f"{PATH}/{project['id']}")
    assert (project["name"], project["documents"], project["chunks"], project["space"]) == ("Tea", 0, 0, None)
    path = reply.headers["location"]
    assert (await api.client.get(path)).json() == project

    changed = await api.client.patch(path, json={"metadata": {"language": None, "stars": 5}})
    assert (changed.json()["name"], changed.json()["metadata"]) == ("Tea", {"stars": 5})
    renamed = await api.client.patch(
        path, content=b'{"name": "Teas"}', headers={"Content-Type": "application/merge-patch+json"}
    )
    assert (renamed.json()["name"], renamed.json()["metadata"]) == ("Teas", {"stars": 5})
    assert_problem(await api.client.patch(path, json={"name": None}), 422)
    assert_problem(await api.client.patch(path, json={"documents": 5}), 422)

    assert (await api.client.delete(path)).status_code == 204
    for again in (api.client.get(path), api.client.delete(path), api.client.patch(path, json={"name": "x"})):
        assert_problem(await again, 404)


async def test_what_is_no_project(api: Api) -> None:
    """It needs a name, and has no other fields than the known ones."""
    for body in ({}, {"name": ""}, {"name": "x" * 256}, {"name": "x", "id": 1}, {"name": "x", "y": 1}):
        assert_problem(await api.client.post(PATH, json=body), 422)


async def test_an_id_is_for_one_project(api: Api) -> None:
    """The same again is the project as it is now, other values are a conflict."""
    id_ = str(uuid4())
    first = await api.client.post(PATH, json={"id": id_, "name": "Tea"})
    await api.client.patch(first.headers["location"], json={"name": "Teas"})
    again = await api.client.post(PATH, json={"id": id_, "name": "Tea"})
    assert (again.status_code, again.json()["name"]) == (201, "Teas")
    assert_problem(await api.client.post(PATH, json={"id": id_, "name": "Coffee"}), 409)


async def test_a_request_is_sent_again_with_its_key(api: Api) -> None:
    """One project is made; the later replies show it as it is, and say so; a deleted one is 404, and stays deleted."""
    key, body = {"Idempotency-Key": "k"}, {"name": "Tea"}
    first, second = [await api.client.post(PATH, json=body, headers=key) for _ in range(2)]
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json() == second.json()
    assert first.headers["location"] == second.headers["location"]
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"
    assert len(await items(api, PATH)) == 1
    assert_problem(await api.client.post(PATH, json={"name": "Coffee"}, headers=key), 422)
    await api.client.delete(first.headers["location"])
    assert_problem(await api.client.post(PATH, json=body, headers=key), 404, "tea")
    assert await items(api, PATH) == []


async def test_projects_are_listed_by_cursor_page_and_offset(api: Api) -> None:
    """Those that were created last come first, ten unless told otherwise."""
    paths = [await made(api, name=f"Tea {number}") for number in range(12)]
    names = [f"Tea {number}" for number in reversed(range(len(paths)))]
    first = (await api.client.get(PATH)).json()
    rest = await items(api, PATH, cursor=first["next"])
    assert [each["name"] for each in first["items"] + rest] == names
    assert len(rest) == 2
    page = (await api.client.get(PATH, params={"page": 2, "limit": 5})).json()
    assert ([each["name"] for each in page["items"]], page["total"]) == (names[5:10], 12)
    assert [each["name"] for each in await items(api, PATH, offset=11)] == names[11:]
    for wrong in ("limit=0", "limit=201", "page=1&offset=1", f"cursor={first['next'][:-4]}", "x=1"):
        assert_problem(await api.client.get(f"{PATH}?{wrong}"), 422)


# --- conversations ------------------------------------------------------------------------------------------


async def test_a_conversation_in_a_project(api: Api) -> None:
    """The project of the path is the conversation's; another one in the body is 422, an unknown one 404."""
    project = await made(api)
    id_ = project.rpartition("/")[2]
    for body in ({"title": "Green"}, {"project_id": id_}):
        reply = await api.client.post(f"{project}/conversations", json=body)
        assert (reply.status_code, reply.json()["project_id"]) == (201, id_)
        assert (await api.client.get(reply.headers["location"])).json()["project_id"] == id_
    problem = assert_problem(await api.client.post(f"{project}/conversations", json={"project_id": str(uuid4())}), 422)
    assert problem["errors"][0]["field"] == "project_id"
    assert_problem(await api.client.post(f"{UNKNOWN}/conversations", json={}), 404)
    assert_problem(await api.client.post("/api/conversations", json={"project_id": str(uuid4())}), 404)


async def test_a_repeated_conversation_in_a_project(api: Api) -> None:
    """With a key it is made once; the latest one is that of the project; it is not shown when the project is gone."""
    project = await made(api)
    path, key = f"{project}/conversations", {"Idempotency-Key": "k"}
    first, second = [await api.client.post(path, json={"title": "zq7"}, headers=key) for _ in range(2)]
    assert (first.json(), second.headers["idempotency-replayed"]) == (second.json(), "true")
    await api.conversation()
    latest = await api.client.post(path, json={"reuse_latest": True})
    assert (latest.status_code, latest.json()["id"]) == (200, first.json()["id"])
    await api.client.delete(project)
    assert_problem(await api.client.post(path, json={"title": "zq7"}, headers=key), 404, "zq7")


async def test_the_conversations_of_a_project(api: Api) -> None:
    """They are its last 10 by updated_at, with the filters and pages of every list of conversations."""
    project = await made(api)
    await api.conversation(title="elsewhere")
    paths = [
        (await api.client.post(f"{project}/conversations", json={"title": f"{number}"})).headers["location"]
        for number in range(12)
    ]
    await api.say(paths[0], "moves it to the front")
    listed = [each["title"] for each in await items(api, f"{project}/conversations")]
    assert listed == ["0", *map(str, range(11, 2, -1))]
    page = (await api.client.get(f"{project}/conversations?page=2&limit=5")).json()
    assert (len(page["items"]), page["total"]) == (5, 12)
    same = await items(api, "/api/conversations", project_id=project.rpartition("/")[2])
    assert [each["title"] for each in same] == listed
    assert_problem(await api.client.get(f"{UNKNOWN}/conversations"), 404)
    assert_problem(await api.client.get(f"{project}/conversations?project_id={uuid4()}"), 422)


async def test_a_project_goes_with_all_that_is_in_it(api: Api) -> None:
    """Its conversations with their messages, and its documents, are gone; others stay."""
    project, other = await made(api), await made(api)
    talk = (await api.client.post(f"{project}/conversations", json={})).headers["location"]
    kept = (await api.client.post(f"{other}/conversations", json={})).headers["location"]
    await api.say(talk, "hello")
    for each in (project, other):
        assert (await sent(api, each, "Green tea")).status_code == 201
    assert (await api.client.delete(project)).status_code == 204
    gone = (talk, f"{talk}/messages", f"{project}/documents", f"{project}/search?q=tea", f"{project}/conversations")
    for path in gone:
        assert_problem(await api.client.get(path), 404)
    assert (await api.client.get(kept)).status_code == 200
    assert len(await items(api, f"{other}/search", q="tea")) == 1


# --- documents ----------------------------------------------------------------------------------------------


async def test_a_document_is_new_replaced_or_unchanged(api: Api) -> None:
    """The same file again changes nothing; another text under the path replaces it, and a search finds that alone."""
    project = await made(api)
    replies = [await sent(api, project, text) for text in ("Green tea", "Green tea", "Black tea")]
    assert [(reply.status_code, reply.json()["change"]) for reply in replies] == [
        (201, "new"), (200, "unchanged"), (201, "replaced"),
    ]  # fmt: skip
    assert len({reply.headers["location"] for reply in replies}) == 1
    document = (await api.client.get(replies[0].headers["location"])).json()
    assert {**document, "change": "replaced"} == replies[2].json()
    assert (document["file_path"], document["bytes"], document["chunks"]) == ("tea/green.md", 9, 1)
    counts = (await api.client.get(project)).json()
    assert (counts["documents"], counts["chunks"]) == (1, 1)
    assert [each["text"] for each in await items(api, f"{project}/search", q="black")] == ["Black tea"]
    assert await items(api, f"{project}/search", q="green") == []


async def test_documents_are_listed_by_their_paths(api: Api) -> None:
    """In the order of their bytes, with a cursor, a page number or an offset."""
    project = await made(api)
    for path in ("b.md", "é.md", "a/z.md"):
        assert (await sent(api, project, "Tea", path)).status_code == 201
    first = (await api.client.get(f"{project}/documents?limit=2&total=true")).json()
    rest = await items(api, f"{project}/documents", cursor=first["next"])
    assert [each["file_path"] for each in first["items"] + rest] == ["a/z.md", "b.md", "é.md"]
    assert first["total"] == 3
    assert [each["file_path"] for each in await items(api, f"{project}/documents", page=2, limit=2)] == ["é.md"]
    assert_problem(await api.client.get(f"{UNKNOWN}/documents"), 404)


async def test_a_full_project_is_a_conflict(api: Api) -> None:
    """The fourth document is 409, which says the limit; what is there may be replaced, and room may be made."""
    project = await made(api)
    paths = [(await sent(api, project, "Tea", f"{number}.md")).headers["location"] for number in range(3)]
    problem = assert_problem(await sent(api, project, "Tea", "zq7.md"), 409, "zq7")
    assert "at most 3 documents" in problem["detail"]
    assert (await sent(api, project, "Coffee", "0.md")).status_code == 201
    assert (await api.client.delete(paths[1])).status_code == 204
    assert_problem(await api.client.delete(paths[1]), 404)
    assert (await sent(api, project, "Tea", "zq7.md")).status_code == 201


async def test_the_passages_of_a_document_are_its_text(api: Api) -> None:
    """Page after page they are the whole text, each where it says that it stands."""
    text = "".join(f"Line {number} of green tea.\n" for number in range(400))
    project = await made(api)
    path = f"{(await sent(api, project, text)).headers['location']}/chunks"
    read: list[dict[str, Any]] = []
    page: dict[str, Any] = {"next": "-1"}
    while page["next"] is not None:
        page = (await api.client.get(path, params={"after": page["next"], "limit": 2})).json()
        read += page["items"]
    assert page["total"] == len(read) > 2
    assert "".join(each["text"] for each in read) == text
    assert all(text[each["start"] : each["end"]] == each["text"] for each in read)
    assert [each["n"] for each in read] == [*range(len(read))]
    assert await items(api, path, after=10_000) == []
    for wrong in ("after=-2", "limit=0", "limit=201", f"after={2**31}", "after=x"):
        assert_problem(await api.client.get(f"{path}?{wrong}"), 422)
    assert_problem(await api.client.get(f"{project}/documents/{uuid4()}/chunks"), 404)


async def test_a_hit_stands_in_its_document(api: Api) -> None:
    """A search has the best passage of each document, with its place, and says how it searched."""
    project = await made(api)
    for name, text in (("a.md", "Black tea"), ("b.md", "Green tea, green leaves")):
        await sent(api, project, text, name)
    found = (await api.client.get(f"{project}/search", params={"q": "green"})).json()
    [hit] = found["items"]
    assert (found["method"], bool(found["note"])) == ("lexical", True)
    chunks = await items(api, f"{project}/documents/{hit['document_id']}/chunks")
    assert {name: hit[name] for name in chunks[0]} == chunks[hit["n"]]
    assert 0 < hit["similarity_score"] <= 1
    assert len(await items(api, f"{project}/search", q="tea", limit=1)) == 1


async def test_what_is_no_question(api: Api) -> None:
    """A question has 1 to 2,000 characters, and at most 50 passages."""
    project = await made(api)
    for query in ("", "q=", "q=%20%20", f"q={'a' * 2_001}", "q=a&limit=0", "q=a&limit=51", "q=a&x=1"):
        assert_problem(await api.client.get(f"{project}/search?{query}"), 422)


async def test_long_questions_in_every_script(api: Api) -> None:
    """2,000 characters may be asked whatever they take in a URL, there and nowhere else."""
    project = await made(api)
    await sent(api, project, "茶" * 100)
    assert len(await items(api, f"{project}/search", q="茶" * 2_000)) == 1
    assert await items(api, f"{project}/search", q="\U0001f375" * 2_000) == []
    assert_problem(await api.client.get(f"{project}/search", params={"q": "a" * 26_000}), 422)
    assert_problem(await api.client.get(f"{project}/documents", params={"cursor": "a" * 5_000}), 422)
    assert_problem(await api.client.get(f"{UNKNOWN}/search?q=tea"), 404)


async def test_documents_are_found_by_meaning() -> None:
    """With an embedder an upload gets vectors in the background, and searches are hybrid from then on."""
    embedders = Embedders(Embedder(TestEmbeddingModel()))
    async with open_store("memory://") as store, embedding(store, embedders) as api:
        project = await made(api)
        assert (await sent(api, project, "Green tea")).status_code == 201
        async with asyncio.timeout(10):
            while (await api.client.get(project)).json()["space"] is None:  # noqa: ASYNC110 - the store tells nobody
                await asyncio.sleep(0.01)
        found = (await api.client.get(f"{project}/search?q=infusion")).json()
        assert (found["method"], found["note"], len(found["items"])) == ("hybrid", None, 1)


async def test_kept_replies_do_not_show_what_went_with_a_project(api: Api) -> None:
    """The kept reply to the creation of a conversation is empty when its project was deleted."""
    project = (await api.client.post("/api/projects", json={"name": "Tea"})).json()["id"]
    key, body = {"Idempotency-Key": "k"}, {"project_id": project, "title": "Private"}
    made = await api.client.post("/api/conversations", json=body, headers=key)
    assert made.status_code == 201
    assert (await api.client.delete(f"/api/projects/{project}")).status_code == 204
    again = await api.client.post("/api/conversations", json=body, headers=key)
    assert_problem(again, 404)
    assert "Private" not in again.text
