"""Owners cannot read or write each other's data."""

from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatkeep.errors import InvalidInput, NotFound, NotYours
from chatkeep.model import Conversation, ConversationChange, Message, NewConversation
from chatkeep.store import Store
from chatkeep.testing.calls import CONVERSATION_CALLS, MESSAGE_CALLS, OWNER_CALLS
from chatkeep.testing.contract import Contract, Opener
from chatkeep.testing.examples import PROPERTY
from chatkeep.testing.messages import someone, user
from chatkeep.testing.reference import found, whole_list


class OwnerContract(Contract):
    """Owners cannot read or write each other's data."""

    @pytest.fixture
    async def theirs(self, store: Store) -> Message:
        """A message of another owner."""
        return await self._someone_elses(store)

    async def _someone_elses(self, store: Store) -> Message:
        stranger = someone()
        conversation = await store.create_conversation(stranger, NewConversation(title="Private"))
        (message,) = await store.append(
            stranger, conversation.id, [user("private saffron tea", metadata={"s": stranger})]
        )
        return message

    @pytest.mark.parametrize("method", sorted(CONVERSATION_CALLS))
    async def test_foreign_conversation_is_refused(
        self, store: Store, owner: str, theirs: Message, method: str
    ) -> None:
        """Every method that takes a conversation's id raises NotYours for another owner's, and changes nothing."""
        stranger = theirs.metadata["s"]
        before = await store.get_conversation(stranger, theirs.conversation_id)
        for _ in range(2):  # first without, then with a conversation of their own
            with pytest.raises(NotYours):
                await CONVERSATION_CALLS[method](store, owner, theirs.conversation_id, theirs.id)
            await store.create_conversation(owner, NewConversation())
        assert await store.get_conversation(stranger, theirs.conversation_id) == before
        assert await store.log(stranger, theirs.conversation_id) == [theirs]

    @pytest.mark.parametrize("method", sorted(CONVERSATION_CALLS))
    async def test_hidden_foreign_conversation_is_not_found(
        self, open_store_with: Opener, owner: str, method: str
    ) -> None:
        """With hide_foreign, a foreign conversation and an unknown one have the same result."""
        async with open_store_with(hide_foreign=True) as store:
            theirs = await self._someone_elses(store)
            answers = []
            for conversation_id in (theirs.conversation_id, uuid4()):
                try:
                    answers.append(await CONVERSATION_CALLS[method](store, owner, conversation_id, theirs.id))
                except NotFound as missing:
                    answers.append(missing.detail)
            assert answers[0] == answers[1]
            assert isinstance(answers[0], str) or (method, answers[0]) == ("delete_conversation", False)
            assert await store.log(theirs.metadata["s"], theirs.conversation_id) == [theirs]

    @pytest.mark.parametrize("method", MESSAGE_CALLS)
    async def test_foreign_message_is_not_found(
        self, store: Store, owner: str, conversation: Conversation, theirs: Message, method: str
    ) -> None:
        """Another owner's message is not found in one's own conversation."""
        await store.append(owner, conversation.id, [user("mine")])
        if method == "delete_message":
            assert await store.delete_message(owner, conversation.id, theirs.id) is False
        else:
            with pytest.raises(NotFound):
                await CONVERSATION_CALLS[method](store, owner, conversation.id, theirs.id)
        with pytest.raises(NotFound):
            await store.append(owner, conversation.id, [user("after theirs", parent_id=theirs.id)])
        with pytest.raises(NotFound):
            await store.update_conversation(owner, conversation.id, ConversationChange(head_id=theirs.id))

    async def test_foreign_id_is_free(self, store: Store, owner: str, theirs: Message) -> None:
        """A conversation may have the id of another owner's; the two are independent."""
        stranger, id_ = theirs.metadata["s"], theirs.conversation_id
        mine = await store.create_conversation(owner, NewConversation(id=id_))
        assert (mine.owner_id, mine.title, mine.last_seq) == (owner, None, 0)
        (message,) = await store.append(owner, id_, [user("my tea", id=theirs.id)])
        assert await store.log(owner, id_) == [message]
        assert await store.log(stranger, id_) == [theirs]
        assert await found(store, owner, "tea") == {"my tea"}
        assert await store.delete_conversation(owner, id_) is True
        assert await store.log(stranger, id_) == [theirs]
        assert await found(store, stranger, "tea") == {"private saffron tea"}

    async def test_lists_and_searches_show_the_owners_own(self, store: Store, owner: str, theirs: Message) -> None:
        """Lists, searches, get-or-create and erasure see the owner's conversations only."""
        stranger = theirs.metadata["s"]
        mine = await store.get_or_create_conversation(owner, NewConversation())
        assert mine.id != theirs.conversation_id
        assert await whole_list(store, owner) == [mine]
        assert (await store.list_conversations(owner, total=True)).total == 1
        assert await found(store, owner, "saffron") == set()
        await store.erase_owner(owner)
        assert await store.log(stranger, theirs.conversation_id) == [theirs]

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("ada", "Ada"),
            ("ada", "ada "),
            ("ada", "ada\x00"),
            ("ada", "ada\x00b"),
            ("é", "e\u0301"),
            ("ß", "ss"),
            ("a%", "ab"),
            ("a", "a\ufdd0"),
            ('x" OR words : "', "x"),
            ("\x00", "\x01"),
        ],
    )
    async def test_owners_are_compared_exactly(self, store: Store, one: str, other: str) -> None:
        """Owners are equal only if they are the same text: case, accents, blanks and NUL count."""
        prefix = someone()
        one, other = prefix + one, prefix + other
        conversation = await store.create_conversation(one, NewConversation())
        await store.append(one, conversation.id, [user("sesame")])
        with pytest.raises(NotYours):
            await store.log(other, conversation.id)
        assert await whole_list(store, other) == []
        assert await found(store, other, "sesame") == set()
        assert (await store.erase_owner(other)).messages == 0
        assert await found(store, one, "sesame") == {"sesame"}
        assert (await store.get_conversation(one, conversation.id)).owner_id == one

    @pytest.mark.parametrize("method", sorted({*CONVERSATION_CALLS, *OWNER_CALLS}))
    async def test_impossible_owners_are_refused(self, store: Store, method: str) -> None:
        """An owner is 1 to 255 bytes of valid Unicode, in every method."""
        for owner in ("", "x" * 256, "é" * 128, "\ud800"):
            with pytest.raises(InvalidInput):
                await {**CONVERSATION_CALLS, **OWNER_CALLS}[method](store, owner, uuid4(), uuid4())

    @PROPERTY
    @given(name=st.text(max_size=40))
    async def test_any_text_can_be_an_owner(self, store: Store, name: str) -> None:
        """Every valid Unicode text can be an owner, and is kept unchanged."""
        owner = f"{uuid4()}{name}"
        conversation = await store.create_conversation(owner, NewConversation())
        await store.append(owner, conversation.id, [user("sesame")])
        assert (await store.get_conversation(owner, conversation.id)).owner_id == owner
        assert await found(store, owner, "sesame") == {"sesame"}
