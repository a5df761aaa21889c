"""The providers of the installation over HTTP: who sees and changes them, and that no secret is ever shown."""

import io
import logging
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from chatkeep import InvalidInput, Store, open_store
from chatkeep.keys import ADMIN, READ
from chatkeep.providers import EXTRACTIVE_ID, MAX_PROVIDERS, ApiConfig, NewLlmProvider
from chatkeep.settings import Settings, provider_key
from servers.api import Api, assert_problem, serving
from servers.others import AUTH, bearer

PATH = "/api/llm-providers"
FIRST = f"{PATH}/{EXTRACTIVE_ID}"
UNKNOWN = f"{PATH}/{uuid4()}"
NEW: dict[str, Any] = {"provider_name": "openai-chat", "model_name": "qwen3"}
CONFIG: dict[str, Any] = {"base_url": "http://127.0.0.1:8080/v1", "api_key_env": "CHATKEEP_PROVIDER_X"}

ROOT = bearer("root", ADMIN)
ADA = bearer("ada")


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    async with open_store(store_url) as store:
        yield store


@pytest.fixture
async def api(store: Store) -> AsyncIterator[Api]:
    """A server without authentication, whose one owner may do everything."""
    async with serving(store) as api:
        yield api


@pytest.fixture
async def shared(store: Store) -> AsyncIterator[Api]:
    """A server that knows owners by their tokens."""
    async with serving(store, **AUTH) as api:
        yield api


async def made(api: Api, headers: dict[str, str] | None = None, **values: Any) -> dict[str, Any]:
    """Create a provider and return it."""
    reply = await api.client.post(PATH, json={**NEW, **values}, headers=headers)
    assert reply.status_code == 201, reply.text
    provider: dict[str, Any] = reply.json()
    assert reply.headers["location"] == f"{PATH}/{provider['id']}"
    return provider


async def listed(api: Api, headers: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """All providers, of which one is the default."""
    page = (await api.client.get(PATH, headers=headers)).json()
    assert (page["total"], page["next"]) == (None, None)
    items: list[dict[str, Any]] = page["items"]
    assert sum(each["is_default"] for each in items) == 1
    return items


async def default(api: Api) -> str:
    """The id of the default."""
    return next(str(each["id"]) for each in await listed(api) if each["is_default"])


# --- the routes ---------------------------------------------------------------------------------------------


async def test_a_new_installation_has_one(api: Api) -> None:
    """It needs no model, and is the default."""
    [first] = await listed(api)
    assert (first["id"], first["provider_name"], first["is_default"]) == (str(EXTRACTIVE_ID), "extractive", True)
    assert (await api.client.get(FIRST)).json() == first


async def test_a_provider_is_created_read_changed_and_deleted(api: Api) -> None:
    """It is what was sent, a merge patch changes it, its configuration is replaced whole, and it is gone then."""
    provider = await made(api, api_config={**CONFIG, "settings": {"temperature": 0.2}})
    path = f"{PATH}/{provider['id']}"
    assert (provider["provider_name"], provider["model_name"], provider["is_default"]) == (
        "openai-chat",
        "qwen3",
        False,
    )
    assert {k: v for k, v in provider["api_config"].items() if v} == {**CONFIG, "settings": {"temperature": 0.2}}
    assert (await api.client.get(path)).json() == provider
    assert (await listed(api))[1] == provider

    renamed = await api.client.patch(path, json={"model_name": "qwen4"})
    assert (renamed.json()["model_name"], renamed.json()["api_config"]) == ("qwen4", provider["api_config"])
    changed = await api.client.patch(
        path,
        content=b'{"api_config": {"history_tokens": 500}}',
        headers={"Content-Type": "application/merge-patch+json"},
    )
    assert {k: v for k, v in changed.json()["api_config"].items() if v} == {"history_tokens": 500}
    assert changed.json()["model_name"] == "qwen4"
    refused: list[Any] = [{"model_name": None}, {"provider_name": "openai"}, {"model_name": ""}, {"x": 1}, []]
    for wrong in refused:
        assert_problem(await api.client.patch(path, json=wrong), 422)
    only_openai = assert_problem(await api.client.patch(path, json={"api_config": {"background": True}}), 422)
    assert "background is only for the provider openai" in only_openai["detail"]

    assert (await api.client.delete(path)).status_code == 204
    for again in (api.client.get(path), api.client.delete(path), api.client.patch(path, json={"model_name": "x"})):
        assert_problem(await again, 404)
    assert len(await listed(api)) == 1


async def test_one_is_the_default(api: Api) -> None:
    """Another one takes its place; it cannot be taken away, and the default goes only with a replacement."""
    second = await made(api, is_default=True)
    assert await default(api) == second["id"]
    await api.client.patch(FIRST, json={"is_default": True})
    assert await default(api) == str(EXTRACTIVE_ID)
    assert "another one" in assert_problem(await api.client.patch(FIRST, json={"is_default": False}), 409)["detail"]
    assert "replacement" in assert_problem(await api.client.delete(FIRST), 409)["detail"]
    assert_problem(await api.client.delete(FIRST, params={"replacement": str(uuid4())}), 404)
    for wrong in ("x", "", str(EXTRACTIVE_ID)):
        assert_problem(await api.client.delete(FIRST, params={"replacement": wrong}), 422)
    assert_problem(await api.client.delete(f"{PATH}/{second['id']}", params={"replace": second["id"]}), 422)
    assert len(await listed(api)) == 2

    assert (await api.client.delete(FIRST, params={"replacement": second["id"]})).status_code == 204
    assert [each["id"] for each in await listed(api)] == [second["id"]]


async def test_one_in_use_goes_with_a_replacement(api: Api) -> None:
    """Conversations that name it name the replacement then, and nothing else of them changes."""
    old, new = await made(api), await made(api, model_name="qwen4")
    talk = await api.conversation(llm_provider_id=old["id"], title="Tea")
    before = (await api.client.get(talk)).json()
    path = f"{PATH}/{old['id']}"
    assert_problem(await api.client.delete(path), 409)
    assert (await api.client.delete(path, params={"replacement": new["id"]})).status_code == 204
    assert (await api.client.get(talk)).json() == {**before, "llm_provider_id": new["id"]}
    assert_problem(await api.client.get(path), 404)


async def test_an_id_is_for_one_provider(api: Api) -> None:
    """The same again is the provider as it is now, other values are a conflict."""
    id_ = str(uuid4())
    await made(api, id=id_)
    await api.client.patch(f"{PATH}/{id_}", json={"model_name": "qwen4"})
    assert (await made(api, id=id_))["model_name"] == "qwen4"
    assert_problem(await api.client.post(PATH, json={**NEW, "id": id_, "model_name": "qwen5"}), 409)


async def test_a_request_is_sent_again_with_its_key(api: Api) -> None:
    """One provider is made; later replies show it as it is, and say so; of a deleted one they are 404."""
    key = {"Idempotency-Key": "k"}
    first = await api.client.post(PATH, json=NEW, headers=key)
    await api.client.patch(first.headers["location"], json={"model_name": "qwen4"})
    second = await api.client.post(PATH, json=NEW, headers=key)
    assert (second.status_code, second.json()["model_name"]) == (201, "qwen4")
    assert first.headers["location"] == second.headers["location"]
    assert ("idempotency-replayed" in first.headers, second.headers["idempotency-replayed"]) == (False, "true")
    assert len(await listed(api)) == 2
    assert_problem(await api.client.post(PATH, json={**NEW, "model_name": "x"}, headers=key), 422)
    await api.client.delete(first.headers["location"])
    assert_problem(await api.client.post(PATH, json=NEW, headers=key), 404)


async def test_there_are_at_most_a_hundred(api: Api) -> None:
    """One more is 422, and says what to do."""
    for number in range(MAX_PROVIDERS - 1):
        await made(api, model_name=f"m{number}")
    problem = assert_problem(await api.client.post(PATH, json=NEW), 422)
    assert "at most 100 providers" in problem["detail"]
    assert len(await listed(api)) == MAX_PROVIDERS


KEY_REASON = "CHATKEEP_PROVIDER_ and capital letters"
WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({}, "provider_name", "missing"),
    ({**NEW, "provider_name": "zq7"}, "provider_name", "must be one of"),
    ({**NEW, "model_name": "x" * 256}, "model_name", "at most 255"),
    ({**NEW, "is_default": None}, "is_default", "true or false"),
    ({**NEW, "api_key": "zq7"}, "body", "unknown field"),
    ({**NEW, "api_config": {"api_key": "zq7"}}, "api_config", "unknown field"),
    ({**NEW, "api_config": {f"zq7{n}": 1 for n in range(7)}}, "api_config", "unknown field"),
    ({**NEW, "api_config": {"api_key_env": "CHATKEEP_DATABASE_URL"}}, "api_config.api_key_env", KEY_REASON),
    ({**NEW, "api_config": {"api_key_env": "CHATKEEP_JWT_SECRET"}}, "api_config.api_key_env", KEY_REASON),
    ({**NEW, "api_config": {"api_key_env": "chatkeep_provider_zq7"}}, "api_config.api_key_env", KEY_REASON),
    ({**NEW, "api_config": {"api_key_env": "CHATKEEP_PROVIDER_X\n"}}, "api_config.api_key_env", KEY_REASON),
    ({**NEW, "api_config": {"api_key_env": "CHATKEEP_PROVIDER_"}}, "api_config.api_key_env", KEY_REASON),
    ({**NEW, "api_config": {"api_key_env": "ANTHROPIC_API_KEY"}}, "body", "only for its provider's own host"),
    ({**NEW, "api_config": {**CONFIG, "api_key_env": "OPENAI_API_KEY"}}, "body", "only for its provider's own host"),
    ({**NEW, "api_config": {"base_url": "file:///zq7"}}, "api_config.base_url", "must be a URL such as"),
    ({**NEW, "api_config": {"base_url": "http://a:zq7@host/v1"}}, "api_config.base_url", "without user, password"),
    ({**NEW, "api_config": {"base_url": "http://host/v1?key=zq7"}}, "api_config.base_url", "without user, password"),
    ({**NEW, "api_config": {"base_url": "http://host:99999/v1"}}, "api_config.base_url", "must be a URL such as"),
    ({**NEW, "api_config": {"base_url": f"http://{'z' * 2_050}"}}, "api_config.base_url", "at most 2,048"),
    ({**NEW, "api_config": {"settings": [1]}}, "api_config.settings", "object"),
    ({**NEW, "api_config": {"history_tokens": 99}}, "api_config.history_tokens", "at least 100"),
    ({**NEW, "api_config": {"instructions": "x" * 10_001}}, "api_config.instructions", "at most 10,000"),
    ({**NEW, "api_config": {"background": True}}, "body", "background is only for"),
    ({**NEW, "is_default": 0}, "is_default", "true or false"),
    ({**NEW, "api_config": {"history_tokens": "500"}}, "api_config.history_tokens", "whole number"),
    ({**NEW, "api_config": None}, "api_config", "must be a JSON object"),
]


@pytest.mark.parametrize(("body", "field", "reason"), WRONG)
async def test_what_is_no_provider(body: dict[str, Any], field: str, reason: str) -> None:
    """Each mistake is named with its field, without what was sent, and nothing is made."""
    async with open_store("memory://") as store, serving(store) as api:
        problem = assert_problem(await api.client.post(PATH, json=body), 422, "zq7")
        assert field in [each["field"] for each in problem["errors"]]
        assert reason in problem["errors"][0]["message"]
        if "api_config" in body:
            change = {"api_config": body["api_config"]}
            assert_problem(await api.client.patch(FIRST, json=change), 422, "zq7")
        assert len(await listed(api)) == 1


async def test_thousands_of_unknown_fields_are_one_error() -> None:
    """A large configuration costs no more than it says."""
    async with open_store("memory://") as store, serving(store) as api:
        crowd = {f"k{number}": 1 for number in range(90_000)}
        for body in ({**NEW, "api_config": crowd}, {**NEW, "api_config": {"settings": {"k": [crowd, crowd]}}}):
            reply = await api.client.post(PATH, json=body)
            assert_problem(reply, 422)
            assert len(reply.content) < 1_000


# --- who may do what ----------------------------------------------------------------------------------------


async def test_only_an_admin_writes(shared: Api) -> None:
    """Others get a sentence that names the scope, whatever they send, and nothing changes."""
    provider = await made(shared, ROOT, api_config=CONFIG)
    path = f"{PATH}/{provider['id']}"
    for headers in (ADA, bearer("ada", "chatkeep:write"), bearer("ada", "chatkeep:write chatkeep:write-any-role")):
        for send in (
            shared.client.post(PATH, json=NEW, headers=headers),
            shared.client.post(PATH, json={"x": 1}, headers={**headers, "Idempotency-Key": "k"}),
            shared.client.patch(path, json={"model_name": "zq7"}, headers=headers),
            shared.client.delete(path, headers=headers),
            shared.client.delete(UNKNOWN, headers=headers),
            shared.client.delete(f"{PATH}/zq7", headers=headers),
        ):
            assert ADMIN in assert_problem(await send, 403, "zq7")["detail"]
    reading = await shared.client.post(PATH, json=NEW, headers=bearer("ada", READ))
    assert "may only read" in assert_problem(reading, 403)["detail"]
    assert_problem(await shared.client.post(PATH, json=NEW), 401)
    assert (await listed(shared, ROOT))[1] == provider


async def test_all_read_without_the_configuration(shared: Api) -> None:
    """Any owner sees which providers there are, and an admin how they are reached; a replayed request shows it too."""
    key = {**ROOT, "Idempotency-Key": "k"}
    provider = await made(shared, key, api_config=CONFIG)
    assert await made(shared, key, api_config=CONFIG) == provider
    path = f"{PATH}/{provider['id']}"
    for headers in (ADA, bearer("ada", READ)):
        seen = await shared.client.get(path, headers=headers)
        assert seen.json() == {**provider, "api_config": None}
        assert (await listed(shared, headers))[1] == seen.json()
        assert "127.0.0.1" not in (await shared.client.get(PATH, headers=headers)).text
    assert provider["api_config"]["base_url"] == CONFIG["base_url"]
    assert (await shared.client.get(path, headers=ROOT)).json() == provider
    assert (await listed(shared, ROOT))[1] == provider


# --- conversations ------------------------------------------------------------------------------------------


async def test_a_conversation_names_its_provider(api: Api) -> None:
    """It is given at its creation or later, null is the default, and an unknown one is 422 everywhere."""
    provider, unknown = (await made(api))["id"], {"llm_provider_id": str(uuid4())}
    talk = await api.conversation(llm_provider_id=provider)
    assert (await api.client.get(talk)).json()["llm_provider_id"] == provider
    for value in (None, str(EXTRACTIVE_ID), provider):
        changed = await api.client.patch(talk, json={"llm_provider_id": value})
        assert changed.json()["llm_provider_id"] == value
    project = (await api.client.post("/api/projects", json={"name": "Tea"})).headers["location"]
    latest = {"llm_provider_id": provider, "context_id": "kitchen", "reuse_latest": True}
    for path, body, status in (
        (f"{project}/conversations", {"llm_provider_id": provider}, 201),
        ("/api/conversations", latest, 200),
        ("/api/conversations", {"external_id": "thread-17", **latest}, 200),
    ):
        reply = await api.client.post(path, json=body)
        assert (reply.status_code, reply.json()["llm_provider_id"]) == (status, provider)
    for send in (
        api.client.post("/api/conversations", json=unknown),
        api.client.post("/api/conversations", json={"context_id": "new", "reuse_latest": True, **unknown}),
        api.client.post("/api/conversations", json={"external_id": "new", "reuse_latest": True, **unknown}),
        api.client.post(f"{project}/conversations", json=unknown),
        api.client.patch(talk, json=unknown),
    ):
        problem = assert_problem(await send, 422, unknown["llm_provider_id"])
        assert PATH in problem["detail"]
    no_ids: list[Any] = ["zq7", 1, {}, ["zq7"]]
    for malformed in no_ids:
        body = {"llm_provider_id": malformed}
        assert_problem(await api.client.post("/api/conversations", json=body), 422, "zq7")
        assert_problem(await api.client.patch(talk, json=body), 422, "zq7")
    assert (await api.client.get(talk)).json()["llm_provider_id"] == provider


# --- secrets ------------------------------------------------------------------------------------------------

SECRETS = {
    "CHATKEEP_PROVIDER_X": "zq7-key",
    "OPENAI_API_KEY": "zq7-standard",
    "CHATKEEP_DATABASE_URL": "postgresql://a:zq7-password@127.0.0.1:1/chat",
    "CHATKEEP_UPSTREAM": "http://a:zq7-upstream@127.0.0.1:1/v1",
}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, f" {value}\n" if name == "CHATKEEP_PROVIDER_X" else value)


@pytest.mark.usefixtures("planted")
def test_a_key_is_read_from_its_variable_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is at the time, stripped; an empty one is none; no other variable is ever read."""
    assert provider_key("CHATKEEP_PROVIDER_X") == "zq7-key"
    assert provider_key("OPENAI_API_KEY") == "zq7-standard"
    assert provider_key("CHATKEEP_PROVIDER_Y") is None
    monkeypatch.setenv("CHATKEEP_PROVIDER_X", "zq7-other")
    assert provider_key("CHATKEEP_PROVIDER_X") == "zq7-other"
    monkeypatch.setenv("CHATKEEP_PROVIDER_X", "  \n")
    assert provider_key("CHATKEEP_PROVIDER_X") is None
    for name in (
        "CHATKEEP_DATABASE_URL",
        "PATH",
        "",
        "CHATKEEP_PROVIDER",
        "CHATKEEP_PROVIDER_X\n",
        "XCHATKEEP_PROVIDER_X",
    ):
        with pytest.raises(InvalidInput, match="not one of those"):
            provider_key(name)
        with pytest.raises(InvalidInput):
            ApiConfig(api_key_env=name)


@pytest.mark.usefixtures("planted")
async def test_secrets_are_nowhere(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """No reply, log line at debug level, error or repr has the value of a variable."""
    caplog.set_level(logging.DEBUG)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    requests = logging.getLogger("chatkeep")
    requests.addHandler(handler)
    told: list[object] = [Settings(), repr(Settings()), vars(ApiConfig(**CONFIG))]
    try:
        async with serving(store, auth="jwt", jwt_secret=AUTH["jwt_secret"], log_level="debug") as api:
            provider = await made(api, ROOT, api_config=CONFIG)
            hosted = await made(api, ROOT, provider_name="openai", api_config={"api_key_env": "OPENAI_API_KEY"})
            told += [store.__dict__, NewLlmProvider(**NEW, api_config=ApiConfig(**CONFIG))]
            told += await store.providers.list_providers()
            told += [reply.text + repr(reply.headers) async for reply in every_reply(api, provider["id"], hosted["id"])]
    finally:
        requests.removeHandler(handler)
    for wrong in (
        lambda: provider_key("CHATKEEP_DATABASE_URL"),
        lambda: ApiConfig(api_key_env="CHATKEEP_DATABASE_URL"),
    ):
        with pytest.raises(ValueError, match=r".") as raised:
            wrong()
        told += [str(raised.value), repr(raised.value)]
    assert "answered" in caplog.text + stream.getvalue()
    everything = f"{told!r}{list(map(str, told))}{caplog.text}{stream.getvalue()}"
    assert "CHATKEEP_PROVIDER_X" in everything
    assert "zq7" not in everything


async def every_reply(api: Api, *ids: str) -> AsyncIterator[httpx2.Response]:
    """What everybody gets from every route that shows providers, also when it fails."""
    for headers in (ROOT, ADA, {}):
        yield await api.client.get(PATH, headers=headers)
        yield await api.client.post("/api/conversations", json={"llm_provider_id": ids[0]}, headers=headers)
        for id_ in (*ids, str(uuid4()), "x"):
            path = f"{PATH}/{id_}"
            yield await api.client.get(path, headers=headers)
            for config in (CONFIG, {"api_key_env": "OPENAI_API_KEY"}, {"api_key_env": "CHATKEEP_DATABASE_URL"}):
                body = {**NEW, "api_config": config}
                yield await api.client.post(PATH, json=body, headers=headers)
                yield await api.client.patch(path, json={"api_config": config}, headers=headers)
            yield await api.client.delete(path, headers=headers)
