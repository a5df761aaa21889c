"""API keys, idempotent requests, and renaming an owner."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from chatkeep.access import DELETED, ApiKey, Reply, location_of
from chatkeep.errors import Conflict, InvalidInput
from chatkeep.model import NewConversation
from chatkeep.projects import NewProject
from chatkeep.store import Store
from chatkeep.testing.contract import Contract
from chatkeep.testing.messages import assistant, someone, user
from chatkeep.testing.reference import whole_log
from chatkeep.values import now

HASH = bytes(range(32))


class AccessContract(Contract):
    """API keys, idempotent requests, and renaming an owner."""

    async def test_api_keys(self, store: Store, owner: str) -> None:
        """A key is found by its id until it is revoked; an owner's keys are listed apart from others'."""
        stranger = someone()
        access = store.access
        first, second = api_key(owner), api_key(stranger, scopes=("a", "b"), expires_at=now())
        await access.create_key(first, HASH)
        await access.create_key(second, HASH[::-1])
        with pytest.raises(Conflict):
            await access.create_key(first.model_copy(update={"owner_id": stranger}), HASH)
        assert await access.find_key(first.id) == (first, HASH)
        assert await access.find_key(second.id) == (second, HASH[::-1])
        assert await access.find_key("absent") is None
        assert [key for key in await access.list_keys() if key in (first, second)] == [first, second]
        assert await access.list_keys(stranger) == [second]
        moment = now()
        await access.key_used(first.id, moment)
        assert (await access.list_keys(owner))[0].last_used_at == moment
        assert await access.revoke_key(first.id)
        assert not await access.revoke_key(first.id)
        assert await access.find_key(first.id) is None

    async def test_owners_are_listed(self, store: Store, owner: str) -> None:
        """Who has a conversation or a project is listed once, in pages; who was erased is not."""
        owners = [f"{owner}{end}" for end in ("", "\0", "Z", "a", "\ufdd0", "\U0001f511")]
        for each in owners[1:]:
            for _ in range(2):
                await store.create_conversation(each, NewConversation())
        await store.projects.create_project(owner, NewProject(name="Tea"))
        found = [each for each in await store.access.list_owners(after=owner[:-1]) if each.startswith(owner)]
        assert sorted(found) == owners
        assert await store.access.list_owners(after=found[0], limit=2) == found[1:3]
        assert await store.access.list_owners(after=found[2], limit=3) == found[3:]
        await store.erase_owner(owners[2])
        assert owners[2] not in await store.access.list_owners(after=owner[:-1])

    async def test_a_key_that_is_stored_again(self, store: Store, owner: str) -> None:
        """Storing the same key again changes nothing; its id with another secret is a conflict."""
        key = api_key(owner)
        for _ in range(2):
            await store.access.create_key(key, HASH)
        with pytest.raises(Conflict):
            await store.access.create_key(key, HASH[::-1])
        assert await store.access.list_keys(owner) == [key]

    async def test_replies_go_with_their_conversation(self, store: Store, owner: str) -> None:
        """Of the replies that show a deleted conversation the fact is left; others, and other owners', stay."""
        gone, stays, stranger = uuid4(), uuid4(), someone()
        kept = {
            (who, key): Reply(201, b'{"title": "private"}', location_of(id_))
            for who in (owner, stranger)
            for key, id_ in (("gone", gone), ("found", gone), ("stays", stays))
        }
        for (who, key), reply in kept.items():
            await store.access.begin_request(who, key, HASH)
            await store.access.finish_request(who, key, reply)
        await store.access.forget_replies(owner, gone)
        for (who, key), reply in kept.items():
            left = reply if who == stranger or key == "stays" else Reply(DELETED, b"")
            assert await store.access.begin_request(who, key, HASH) == left
        with pytest.raises(InvalidInput):
            await store.access.begin_request(owner, "gone", HASH[::-1])

    async def test_keys_of_unusual_owners(self, store: Store, owner: str) -> None:
        """Owner and name are kept unchanged, NUL included."""
        odd = api_key(f"{owner}\0b\ufdd0", name="naïve\0 ключ 🔑")
        await store.access.create_key(odd, HASH)
        assert await store.access.find_key(odd.id) == (odd, HASH)
        assert await store.access.list_keys(odd.owner_id) == [odd]
        assert await store.access.list_keys(owner) == []

    async def test_repeated_requests(self, store: Store, owner: str) -> None:
        """One request executes, others are refused meanwhile, then get its reply. Other requests cannot use the key."""
        stranger = someone()
        access, reply = store.access, Reply(201, b'{"a": "\x00"}', "/somewhere")
        assert await access.begin_request(owner, "k", HASH) is None
        with pytest.raises(Conflict, match="under way"):
            await access.begin_request(owner, "k", HASH)
        assert await access.begin_request(stranger, "k", HASH) is None, "keys are per owner"
        await access.finish_request(owner, "k", reply)
        assert await access.begin_request(owner, "k", HASH) == reply
        with pytest.raises(InvalidInput, match="another request"):
            await access.begin_request(owner, "k", HASH[::-1])
        await access.abandon_request(owner, "k")
        assert await access.begin_request(owner, "k", HASH) == reply, "a kept reply stays"
        await access.abandon_request(stranger, "k")
        assert await access.begin_request(stranger, "k", HASH[::-1]) is None

    async def test_requests_at_once(self, store: Store, owner: str) -> None:
        """Of twenty concurrent requests one executes."""
        began = [store.access.begin_request(owner, "k", HASH) for _ in range(20)]
        outcomes = await asyncio.gather(*began, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes if outcome is not None] == [Conflict] * 19

    async def test_renaming_an_owner(self, store: Store, owner: str) -> None:
        """Everything moves to the new owner, also in the search index; traces of erasures stay with their names."""
        stranger = someone()
        erased_at = await store.access.note_erasure(owner)
        conversation = await store.create_conversation(owner, NewConversation(context_id="c"))
        kept = await store.append(owner, conversation.id, [user("green pebble"), assistant("тёплый чай")])
        other = await store.create_conversation(stranger, NewConversation())
        await store.append(stranger, other.id, [user("blue pebble")])
        key = api_key(owner)
        await store.access.create_key(key, HASH)
        await store.access.begin_request(owner, "k", HASH)
        assert await store.rename_owner(owner, stranger) == 1
        assert await store.rename_owner(owner, stranger) == 0
        assert await whole_log(store, stranger, conversation.id) == kept
        assert (await store.get_conversation(stranger, conversation.id)).owner_id == stranger
        assert len((await store.search_messages(stranger, "pebble")).items) == 2
        assert len((await store.search_messages(stranger, "чай")).items) == 1
        assert (await store.search_messages(owner, "pebble")).items == []
        assert (await store.list_conversations(owner)).items == []
        assert [one.id for one in await store.access.list_keys(stranger)] == [key.id]
        assert await store.access.begin_request(owner, "k", HASH) is None
        assert [await store.access.erased_at(each) for each in (owner, stranger)] == [erased_at, None]
        await store.append(stranger, conversation.id, [user("one more pebble")])
        assert len((await store.search_messages(stranger, "pebble")).items) == 3
        receipt = await store.erase_owner(stranger)
        assert (receipt.conversations, receipt.messages, receipt.search_entries, receipt.remaining) == (2, 4, 4, 0)

    async def test_renaming_an_owner_who_is_not_there(self, store: Store, owner: str) -> None:
        """Nothing moves, and there is no new owner."""
        assert await store.rename_owner(owner, f"{owner} again") == 0
        assert not [each for each in await store.access.list_owners(after=owner[:-1]) if each.startswith(owner)]

    async def test_renaming_refuses_a_clash(self, store: Store, owner: str) -> None:
        """Renaming is refused, and changes nothing, if both owners have a conversation with the same id."""
        stranger = someone()
        conversation = await store.create_conversation(owner, NewConversation())
        await store.create_conversation(stranger, NewConversation(id=conversation.id))
        with pytest.raises(Conflict, match="same id"):
            await store.rename_owner(owner, stranger)
        assert (await store.get_conversation(owner, conversation.id)).owner_id == owner

    async def test_erasure_takes_keys_and_replies(self, store: Store, owner: str) -> None:
        """Erasing an owner removes their API keys and kept replies, and nobody else's."""
        stranger = someone()
        for name in (owner, stranger):
            await store.access.create_key(api_key(name), HASH)
            await store.access.begin_request(name, "k", HASH)
        receipt = await store.erase_owner(owner)
        assert (receipt.api_keys, receipt.requests, receipt.remaining) == (1, 1, 0)
        assert [await store.access.list_keys(name) == [] for name in (owner, stranger)] == [True, False]
        with pytest.raises(Conflict):
            await store.access.begin_request(stranger, "k", HASH)


def api_key(owner: str, **values: Any) -> ApiKey:
    """Return an API key that was created now."""
    return ApiKey(**{"id": uuid4().hex, "owner_id": owner, "name": "script", "created_at": now(), **values})
