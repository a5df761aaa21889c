"""Strict roles: what an assistant, a system or a tool said is written by those alone who may."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx2
import pytest

from chatkeep import NewConversation, Store, open_store
from chatkeep.answers.scripted import ScriptedProvider
from chatkeep.events import text
from chatkeep.keys import ADMIN, READ, SCOPES, WRITE, WRITE_ANY_ROLE, make_key
from chatkeep.settings import Settings
from servers.api import Api, answering, assert_problem, serving
from servers.others import AUTH, bearer

OTHERS = ("assistant", "system", "tool")
ADA = bearer("ada", "")
WRITER = bearer("ada", WRITE_ANY_ROLE)


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    async with open_store(store_url) as store:
        yield store


@asynccontextmanager
async def talking(store: Store, **settings: Any) -> AsyncIterator[tuple[Api, str]]:
    """A server, and the path of the messages of a conversation of ada, or of the local owner."""
    owner = "ada" if settings.get("auth") == "jwt" else "local"
    talk = await store.create_conversation(owner, NewConversation())
    async with serving(store, **settings) as api:
        yield api, f"/api/conversations/{talk.id}/messages"


async def contents(api: Api, path: str, headers: dict[str, str] | None = None) -> list[str]:
    """What is stored."""
    page = (await api.client.get(path, headers=headers)).json()
    return [each["content"] for each in page["items"]]


def refused(reply: httpx2.Response, field: str) -> None:
    """Check that a reply says which role is wrong, and both ways out, and nothing that was sent."""
    detail = assert_problem(reply, 403, "zq7")["detail"]
    assert detail.startswith(f"{field} must be user: ")
    assert WRITE_ANY_ROLE in detail
    assert "CHATKEEP_STRICT_ROLES" in detail


async def test_a_client_writes_as_the_user_alone(store: Store) -> None:
    """With authentication other roles are refused, alone and in a batch, whose place is named; nothing is stored."""
    async with talking(store, **AUTH) as (api, path):
        for role in OTHERS:
            ways: list[dict[str, Any]] = [
                {},
                {"answer": False},
                {"parts": [{"type": "text", "text": "zq7"}], "content": None},
            ]
            for more in ways:
                body = {"role": role, "content": "zq7", **more}
                refused(await api.client.post(path, json=body, headers=ADA), "role")
            batch: dict[str, Any] = {
                "messages": [{"role": "user", "content": "zq7"}] * 2 + [{"role": role, "content": "zq7"}] * 2
            }
            refused(await api.client.post(f"{path}/batch", json=batch, headers=ADA), "messages.2.role")
        large = {"role": "system", "content": "hello", "metadata": {"k": "zq7" * 30_000}}
        refused(await api.client.post(path, json=large, headers=ADA), "role")
        assert await contents(api, path, ADA) == []

        for body in ({"role": "user", "content": "one"}, {"content": "two", "answer": False}):
            assert (await api.client.post(path, json=body, headers=ADA)).status_code == 201
        batch = {"messages": [{"role": "user", "content": "three"}]}
        assert (await api.client.post(f"{path}/batch", json=batch, headers=ADA)).status_code == 201
        assert await contents(api, path, ADA) == ["one", "two", "three"]


async def test_the_scope_allows_every_role(store: Store) -> None:
    """Who has it writes every role; the scope of an admin is another one."""
    async with talking(store, **AUTH) as (api, path):
        for headers in (
            WRITER,
            bearer("ada", f"{READ} {WRITE_ANY_ROLE}"),
            {"Authorization": await key(store, WRITE_ANY_ROLE)},
        ):
            for role in OTHERS:
                reply = await api.client.post(path, json={"role": role, "content": "hello"}, headers=headers)
                assert reply.status_code == 201, reply.text
            batch = {"messages": [{"role": role, "content": "hello"} for role in OTHERS]}
            assert (await api.client.post(f"{path}/batch", json=batch, headers=headers)).status_code == 201
        body = {"role": "system", "content": "zq7"}
        for headers in (bearer("ada", ADMIN), bearer("ada", WRITE), {"Authorization": await key(store, WRITE, ADMIN)}):
            refused(await api.client.post(path, json=body, headers=headers), "role")
        reading = await api.client.post(path, json=body, headers=bearer("ada", READ))
        assert "may only read" in assert_problem(reading, 403)["detail"]


async def key(store: Store, *scopes: str) -> str:
    """What authenticates with a new API key of ada's."""
    new = make_key("ada", "", scopes, timedelta(hours=1))
    await store.access.create_key(new.key, new.secret_hash)
    return f"Bearer {new.text}"


async def test_the_setting_allows_every_role_to_everybody(store: Store) -> None:
    """Without strict roles a token needs no scope, and one that may only read still writes nothing."""
    async with talking(store, **AUTH, strict_roles=False) as (api, path):
        for role in OTHERS:
            assert (await api.client.post(path, json={"role": role, "content": "a"}, headers=ADA)).status_code == 201
        reading = await api.client.post(path, json={"role": "user", "content": "a"}, headers=bearer("ada", READ))
        assert_problem(reading, 403)


async def test_without_authentication(store: Store) -> None:
    """The one owner writes every role, unless the setting says otherwise: then nobody does."""
    async with talking(store) as (api, path):
        for role in OTHERS:
            assert (await api.client.post(path, json={"role": role, "content": "hello"})).status_code == 201
    async with talking(store, strict_roles=True) as (api, path):
        for role in OTHERS:
            refused(await api.client.post(path, json={"role": role, "content": "zq7"}), "role")
        assert (await api.client.post(path, json={"role": "user", "content": "hello"})).status_code == 201
        assert (await api.client.get("/api/llm-providers")).json()["items"][0]["api_config"] is not None


async def test_a_question_is_answered_all_the_same(store: Store) -> None:
    """What the server itself writes as the assistant is not the client's."""
    talk = await store.create_conversation("ada", NewConversation())
    path = f"/api/conversations/{talk.id}/messages"
    async with answering(store, ScriptedProvider([text("Green.")]), None, None, **AUTH) as api:
        reply = await api.client.post(path, json={"content": "Which tea?"}, headers=ADA)
        assert (reply.status_code, reply.json()["assistant_message"]["content"]) == (201, "Green.")
        asked = {"role": "assistant", "content": "zq7", "answer": True}
        refused(await api.client.post(path, json=asked, headers=ADA), "role")
        assert await contents(api, path, ADA) == ["Which tea?", "Green."]


def test_the_default_follows_authentication() -> None:
    """Strict with authentication, else not, and the setting decides in both cases."""
    tokens: dict[str, Any] = {"auth": "jwt", "jwt_secret": "s" * 64}
    assert [Settings(**tokens).has_strict_roles, Settings().has_strict_roles] == [True, False]
    assert [Settings(**tokens, strict_roles=each).has_strict_roles for each in (True, False)] == [True, False]
    assert [Settings(strict_roles=each).has_strict_roles for each in (True, False)] == [True, False]
    assert [Settings(**tokens).may_reach_private, Settings().may_reach_private] == [False, True]
    assert [Settings(**tokens, allow_private_providers=each).may_reach_private for each in (True, False)] == [
        True,
        False,
    ]
    assert [Settings(allow_private_providers=each).may_reach_private for each in (True, False)] == [True, False]
    assert WRITE_ANY_ROLE in SCOPES
