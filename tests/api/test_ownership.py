"""Who gets what from every route: a matrix that is made from the OpenAPI document.

A new route is in it by itself, and fails here until it is known what it needs.
"""

import time
from collections.abc import AsyncIterator
from itertools import product
from typing import Any
from uuid import uuid4

import httpx2
import jwt
import pytest
from test_auth import AUDIENCE, EC_KEY, FakeIssuer, issuing, signed_with_public_key

from chatkeep import NewConversation, NewMessage, Role, Store, StoreOptions, open_store
from chatkeep.answers.scripted import ScriptedProvider
from chatkeep.api.admission import is_protected
from chatkeep.api.app import create_app
from chatkeep.documents import NewChunk, NewDocument
from chatkeep.events import text
from chatkeep.keys import ADMIN
from chatkeep.projects import NewProject
from chatkeep.providers import ApiConfig, LlmProvider, NewLlmProvider
from chatkeep.retrieval.terms import pack_terms
from chatkeep.settings import Settings
from chatkeep.stores.memory.store import MemoryStore
from servers.api import Api, answering

DOCUMENT = create_app(MemoryStore("memory://", StoreOptions()), Settings()).openapi()
ROUTES = [
    (method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods if is_protected(path)
]
REFUSED = ("none", "garbage", "expired", "wrong audience", "alg none", "HS256 with the public key")
LET_IN = ("owner", "another owner", "admin")
"""An admin is an owner, too: ada, with the scope."""
IDS = ("existing", "foreign", "unknown", "malformed")
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/api/conversations"): {},
    ("PATCH", "/api/conversations/{conversation_id}"): {"title": "zq7 taken over"},
    ("POST", "/api/conversations/{conversation_id}/messages"): {"role": "user", "content": "let me in"},
    ("POST", "/api/conversations/{conversation_id}/messages/batch"): {
        "messages": [{"role": "user", "content": "let us in"}] * 2
    },
    ("PATCH", "/api/conversations/{conversation_id}/messages/{message_id}"): {"metadata": {"zq7": "taken over"}},
    ("POST", "/api/projects"): {"name": "mine"},
    ("PATCH", "/api/projects/{project_id}"): {"name": "zq7 taken over"},
    ("POST", "/api/projects/{project_id}/conversations"): {},
    ("POST", "/api/llm-providers"): {"provider_name": "openai-chat", "model_name": "zq7"},
    ("PATCH", "/api/llm-providers/{provider_id}"): {"model_name": "zq7 taken over"},
}
PROVIDERS = "/api/llm-providers"
"""What belongs to nobody: no id is foreign there."""
UPLOADS = {("POST", "/api/projects/{project_id}/documents"): {"file": ("zq7.md", b"let me in")}}
QUERIES = {("GET", path): {"q": "secret"} for path in ("/api/search", "/api/projects/{project_id}/search")}
OF_ANSWERS = ("/events", "/stop")
"""What ends the path of a route that takes the id of an answer."""
DONE = {"POST": 201, "DELETE": 204}
MATRIX = [
    (method, path, who, id_)
    for (method, path), who in product(ROUTES, (*REFUSED, *LET_IN))
    # Whoever is refused is before any id is looked at: the id that there is shows most.
    for id_ in (("-",) if "{" not in path else IDS if who in LET_IN else ("existing",))
]


def test_the_matrix_is_whole() -> None:
    """Every operation of the document is in it, with every credential, and who is let in with every kind of id."""
    with_id = sum("{" in path for _, path in ROUTES)
    assert with_id >= 27
    assert len(MATRIX) == (6 + 3 * 4) * with_id + 9 * (len(ROUTES) - with_id)


MODES = [
    pytest.param(store, mode, marks=pytest.mark.apart if (store, mode) == ("postgres", "hidden") else ())
    for store, mode in product(("memory", "sqlite", "postgres", "mongodb"), ("shown", "hidden"))
]
"""Stores with what they say of others' ids. A server's matrix of both is for `make apart`; who has an id is asked for
where that is shown."""


@pytest.fixture(params=["shown", "hidden"])
def hides(request: pytest.FixtureRequest) -> bool:
    """Whether the server says that something is somebody else's."""
    return bool(request.param == "hidden")


class World:
    """A server, two owners with a conversation each, and whoever comes."""

    def __init__(self, api: Api, store: Store, issuer: FakeIssuer) -> None:
        self.api = api
        self.store = store
        self.issuer = issuer

    async def fill(self) -> None:
        """Give each owner a conversation with two messages. One provider is there as well, which is none's."""
        await self.store.providers.create_provider(SECRET_PROVIDER)
        self.ids: dict[str, dict[str, str]] = {}
        self.answers: dict[str, str] = {}
        for owner in ("ada", "bob"):
            talk = await self.store.create_conversation(owner, NewConversation(title=f"secret of {owner}"))
            texts = [
                NewMessage(role=role, content=f"secret {number}")
                for number, role in enumerate((Role.USER, Role.ASSISTANT))
            ]
            stored = await self.store.append(owner, talk.id, texts)
            project = await self.store.projects.create_project(owner, NewProject(name=f"secret of {owner}"))
            document = await self.store.documents.store_document(owner, project.id, SECRET, SECRET_TEXT)
            self.ids[owner] = {
                "conversation_id": str(talk.id),
                "message_id": str(stored[0].id),
                "project_id": str(project.id),
                "document_id": str(document.document.id),
                "provider_id": str(SECRET_PROVIDER.id),
            }
            self.answers[owner] = str(stored[1].id)

    async def kept(self, owner: str) -> tuple[Any, ...]:
        """What an owner has: messages, the project, its documents, and their text."""
        ids = self.ids[owner]
        log = await self.store.log(owner, ids["conversation_id"])
        project = await self.store.projects.get_project(owner, ids["project_id"])
        documents = await self.store.documents.list_documents(owner, project.id)
        [chunk] = await self.store.documents.document_chunks(owner, project.id, ids["document_id"])
        paths = [document.file_path for document in documents.items]
        return [(message.content, message.metadata) for message in log], project.name, paths, chunk.text

    async def providers(self) -> list[LlmProvider]:
        """What the installation has, which only an admin changes."""
        return await self.store.providers.list_providers()

    def headers(self, who: str) -> dict[str, str]:
        """What somebody sends to be let in."""
        claims = {"sub": "ada", "aud": AUDIENCE, "iss": self.issuer.url, "exp": int(time.time()) + 60}
        texts = {
            "garbage": "zq7garbage",
            "expired": self.issuer.token("ec", exp=int(time.time()) - 100),
            "wrong audience": self.issuer.token("ec", aud="others"),
            "alg none": jwt.encode(claims, "", "none", headers={"kid": "ec"}),
            "HS256 with the public key": signed_with_public_key(claims, repr(EC_KEY.public_key()).encode()),
            "owner": self.issuer.token("ec", sub="ada"),
            "another owner": self.issuer.token("ec", sub="bob"),
            "admin": self.issuer.token("ec", sub="ada", scope=ADMIN),
        }
        return {} if who == "none" else {"Authorization": f"Bearer {texts[who]}"}

    async def send(self, method: str, path: str, who: str, id_: str) -> httpx2.Response:
        """Send the request with ids of this kind, as seen by whom it comes from."""
        owner, other = ("bob", "ada") if who == "another owner" else ("ada", "bob")
        named = {
            "existing": self.ids[owner],
            "foreign": self.ids[other],
            "unknown": {name: str(uuid4()) for name in self.ids[owner]},
            "malformed": dict.fromkeys(self.ids[owner], "zq7"),
            "-": {},
        }[id_]
        if path.endswith(OF_ANSWERS) and id_ in ("existing", "foreign"):
            named = {**named, "message_id": self.answers[owner if id_ == "existing" else other]}
        return await self.api.client.request(
            method,
            path.format(**named),
            headers=self.headers(who),
            json=BODIES.get((method, path)),
            files=UPLOADS.get((method, path)),
            params=QUERIES.get((method, path)),
        )


SECRET = NewDocument(file_path="secret.md", media_type="text/markdown", bytes=6, sha256="0" * 64)
SECRET_PROVIDER = NewLlmProvider(
    id=uuid4(),
    provider_name="openai-chat",
    model_name="secret",
    api_config=ApiConfig(base_url="http://secret.example/v1"),
)
SECRET_TEXT = [NewChunk("secret", None, "", 0, pack_terms("secret"))]
SCRIPTED = ScriptedProvider([text("Green.")])


def auth(issuer: FakeIssuer) -> dict[str, Any]:
    """The settings of a server that knows owners by the tokens of this issuer."""
    limits = {"failure_limit": "1000000/minute"}
    return {"auth": "jwt", "jwt_issuer": issuer.url, "jwt_audience": AUDIENCE, **limits}


@pytest.fixture
async def world(store_url: str, *, hides: bool) -> AsyncIterator[World]:
    async with (
        issuing() as issuer,
        open_store(store_url, hide_foreign=hides) as store,
        answering(store, SCRIPTED, turn_limit="0", **auth(issuer)) as api,
    ):
        yield World(api, store, issuer)


def expected(method: str, path: str, who: str, id_: str, *, hides: bool) -> int:
    """The status that the requirements give."""
    if who in REFUSED:
        return 401
    done = 200 if path == "/api/me" or path.endswith("/stop") else DONE.get(method, 200)
    if path.startswith(PROVIDERS):
        may = method == "GET" or who == "admin"
        return {"malformed": 422, "unknown": 404}.get(id_, done) if may else 403
    return {"malformed": 422, "unknown": 404, "foreign": 404 if is_hidden(path, hides=hides) else 403}.get(id_, done)


def is_hidden(path: str, *, hides: bool) -> bool:
    """Whether nobody is told that something is somebody else's: that of projects always."""
    return hides or path.startswith("/api/projects")


def untouched(owner: str) -> tuple[Any, ...]:
    """What `World.kept` is while nobody changed it."""
    return [("secret 0", {}), ("secret 1", {})], f"secret of {owner}", ["secret.md"], "secret"


@pytest.mark.parametrize(("store_url", "hides"), MODES, indirect=True)
async def test_matrix(world: World, *, hides: bool) -> None:
    """Every cell has the status that it should, and whoever is not let in learns and changes nothing."""
    wrong, changed = [], True
    for method, path, who, id_ in MATRIX:
        if changed:
            await world.fill()
            there = await world.providers()
        reply = await world.send(method, path, who, id_)
        changed = method != "GET" and reply.status_code < 400
        status = expected(method, path, who, id_, hides=hides)
        if reply.status_code != status:
            wrong.append(f"{method} {path} by {who} with {id_} id: {reply.status_code}, not {status}")
        if reply.status_code >= 400 and ("secret" in reply.text or "zq7" in reply.text):
            wrong.append(f"{method} {path} by {who} with {id_} id tells: {reply.text}")
        owner = "bob" if who == "another owner" else "ada"
        other = "ada" if owner == "bob" else "bob"
        if await world.kept(other) != untouched(other):
            wrong.append(f"{method} {path} by {who} with {id_} id changed what is {other}'s")
        if who != "admin":
            assert await world.providers() == there, f"{method} {path} by {who} changed a provider"
            assert "secret.example" not in reply.text
        if who in REFUSED:
            assert await world.kept("ada") == untouched("ada"), f"{method} {path} by {who} changed something"
    assert wrong == []


async def test_foreign_and_unknown_are_the_same_when_hidden(world: World, *, hides: bool) -> None:
    """With hide_foreign, the answers to a foreign and to an unknown id are equal to the byte; without, they differ."""
    await world.fill()
    for method, path in ROUTES:
        if "{" in path and not path.startswith(PROVIDERS):
            foreign, unknown = [await world.send(method, path, "owner", id_) for id_ in ("foreign", "unknown")]
            assert (foreign.content == unknown.content) == is_hidden(path, hides=hides)
            changing = {"date", "x-request-id", "ratelimit"}
            names = (set(foreign.headers) | set(unknown.headers)) - changing
            if is_hidden(path, hides=hides):
                assert {n: foreign.headers.get(n) for n in names} == {n: unknown.headers.get(n) for n in names}


async def test_ids_cannot_be_squatted(world: World) -> None:
    """Creating something with an id that somebody else uses works, reveals nothing and touches nothing of theirs."""
    await world.fill()
    foreign = world.ids["bob"]
    made = await world.api.client.post(
        "/api/conversations", headers=world.headers("owner"), json={"id": foreign["conversation_id"], "title": "mine"}
    )
    fresh = await world.api.client.post(
        "/api/conversations", headers=world.headers("owner"), json={"id": str(uuid4()), "title": "mine"}
    )
    assert (made.status_code, fresh.status_code) == (201, 201)
    assert set(made.json()) == set(fresh.json())
    said = {"id": foreign["message_id"], "role": "user", "content": "mine"}
    path = f"/api/conversations/{foreign['conversation_id']}/messages"
    assert (await world.api.client.post(path, headers=world.headers("owner"), json=said)).status_code == 201
    project = {"id": foreign["project_id"], "name": "mine"}
    made = await world.api.client.post("/api/projects", headers=world.headers("owner"), json=project)
    assert (made.status_code, made.json()["documents"]) == (201, 0)
    assert await world.kept("bob") == untouched("bob")
