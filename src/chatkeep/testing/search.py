"""Full-text search."""

from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatkeep.errors import InvalidId, InvalidInput, NotFound, NotYours
from chatkeep.model import Conversation, NewConversation
from chatkeep.store import Store
from chatkeep.testing.contract import Contract, Opener
from chatkeep.testing.examples import PROPERTY, SENTENCES
from chatkeep.testing.messages import assistant, contents, someone, user
from chatkeep.testing.reference import found, whole_search


class SearchContract(Contract):
    """Full-text search."""

    async def test_words_of_every_script(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A word of a sentence is found in every script, in that sentence only, and is in the snippet."""
        await store.append(owner, conversation.id, [user(sentence) for _, sentence, _ in SENTENCES])
        for script, sentence, word in SENTENCES:
            hits = await whole_search(store, owner, word)
            assert [hit.message.content for hit in hits] == [sentence], script
            assert word in hits[0].snippet, script

    async def test_parts_of_unspaced_sentences_stand_together(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """In scripts without spaces a query matches if its characters are adjacent, in that order."""
        await store.append(owner, conversation.id, [user("我们明天去图书馆"), user("书店里有地图")])
        assert await found(store, owner, "图书") == {"我们明天去图书馆"}
        assert await found(store, owner, "书图") == set()
        assert await found(store, owner, "图 书") == {"我们明天去图书馆", "书店里有地图"}
        await store.append(owner, conversation.id, [user("iPhone15手机很贵")])
        assert await found(store, owner, "手机") == await found(store, owner, "iphone15") == {"iPhone15手机很贵"}

    @pytest.mark.parametrize(
        ("content", "query"),
        [
            ("The Café is open", "cafe"),
            ("The cafe is open", "CAFÉ"),
            ("cafe\u0301 noir", "café"),
            ("ο δρόμος είναι μακρύς", "ΔΡΟΜΟΣ"),
            ("Ёлка стоит в углу", "елка"),
            ("Die Straße ist nass", "STRASSE"),
            ("full width ＴＥＡ", "tea"),
            ("half width ｺｰﾋｰ", "コーヒー"),
            ("ﬁne tea", "fine"),
            ("x² + y²", "x2"),
            ("tea-time, isn't it?", "time"),
            ("see chat_keep.py", "keep"),
            ("a\x00beta", "beta"),
            ("İstanbul", "istanbul"),
            ("Donau\u00addampf\u00adschiff", "donaudampfschiff"),
            ("donaudampfschiff", "Donau\u00addampfschiff"),
            ("super\u200bcali", "supercali"),
            ("می\u200cخواهم", "میخواهم"),
            ("ทะเล\u200bสวย", "ทะเลสวย"),
            ("ทะเลสวย", "ทะเล\u200bสวย"),
            ("شَايٌ أَخْضَر", "شاي أخضر"),
            ("شـــاي", "شَاي"),
            ("תֵּה יָרוֹק", "תה"),
            ("תה", "תֵּה"),
            ("Đorđe u Łódźi", "dorde lodzi"),
            ("dorde", "ĐORĐE"),
            ("Smørrebrød", "smorrebrod"),
            ("Aero", "Ærø"),
        ],
    )
    async def test_words_are_compared_without_case_accents_and_form(
        self, store: Store, owner: str, conversation: Conversation, content: str, query: str
    ) -> None:
        """Case, accents and compatibility forms are ignored, in the text and in the query."""
        await store.append(owner, conversation.id, [assistant(content), assistant("something else, 别的, 다른 것")])
        assert await found(store, owner, query) == {content}

    async def test_several_words_must_all_be_there(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Every word of the query must be in the message, in any order; parts of words do not match."""
        texts = ["green tea with mint", "black tea", "mint and green apples", "greenest teapot, minty"]
        await store.append(owner, conversation.id, [user(text) for text in texts])
        assert await found(store, owner, "mint green") == {texts[0], texts[2]}
        assert await found(store, owner, "tea green mint") == {texts[0]}
        assert await found(store, owner, "tea tea tea") == {texts[0], texts[1]}
        assert await found(store, owner, "gree") == set()
        assert await found(store, owner, "coffee") == set()

    async def test_words_in_quotes_stand_together(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A phrase in double quotes, of any kind, matches if its words are adjacent, in that order."""
        texts = ["green tea, with mint", "tea, green with mint", "mint; GREEN—Tea", "green and tea"]
        await store.append(owner, conversation.id, [user(text) for text in texts])
        for query in (
            '"green tea"',
            "„Green Tea“",
            "«green tea»",
            "“green tea”",
            '"green tea',
            'mint "tea green" "tea',
        ):
            expected = {texts[1]} if query.startswith("mint") else {texts[0], texts[2]}
            assert await found(store, owner, query) == expected, query
        assert await found(store, owner, '"green tea" with') == {texts[0]}
        assert await found(store, owner, '"tea green mint"') == set()

    async def test_words_with_a_minus_are_excluded(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A message that holds an excluded word or phrase is no hit; within a word a minus excludes nothing."""
        texts = ["green tea", "black tea", "tea, black as night", "tea and an e-mail", "tea e mail 2026-01-01"]
        await store.append(owner, conversation.id, [user(text) for text in texts])
        assert await found(store, owner, "tea -black") == {texts[0], *texts[3:]}
        assert await found(store, owner, 'tea -"black tea"') == {texts[0], *texts[2:]}
        assert await found(store, owner, '-night tea -green -"e mail"') == {texts[1]}
        assert await found(store, owner, "tea -e-mail") == set(texts[:3])
        assert await found(store, owner, "tea -tea") == set()
        assert await found(store, owner, "e-mail") == set(texts[3:])
        assert await found(store, owner, "2026-01-01 tea") == {texts[4]}
        assert len(await whole_search(store, owner, 'tea -"black tea" -"an e"', limit=1)) == 3
        with pytest.raises(InvalidInput, match="wanted"):
            await store.search_messages(owner, "-tea")

    async def test_snippet_shows_what_is_wanted(self, store: Store, owner: str, conversation: Conversation) -> None:
        """The snippet is about the first phrase that is wanted, whatever is excluded."""
        await store.append(owner, conversation.id, [assistant(f"tea. {'Plain words here. ' * 50} Green tea.")])
        (hit,) = await whole_search(store, owner, '-black "green tea"')
        assert "Green tea." in hit.snippet

    @pytest.mark.parametrize(
        "query",
        ['"tea', "tea*", "tea AND", "NOT tea", "tea OR coffee", "NEAR(tea coffee)", "words:tea", "owner : tea", "^tea",
         "-tea", "tea\\", "tea'; DROP TABLE messages; --", "{words owner}: tea", '" OR owner : "', "tea + coffee", "%",
         "tea\x00", "(tea", "tea)", "$where tea"],
    )  # fmt: skip
    async def test_operators_are_words_or_nothing(
        self, store: Store, owner: str, conversation: Conversation, query: str
    ) -> None:
        """Other operators of search engines have no meaning: only their words are searched."""
        stranger = someone()
        theirs = await store.create_conversation(stranger, NewConversation())
        await store.append(stranger, theirs.id, [user("tea or coffee and not words owner near where drop table")])
        await store.append(owner, conversation.id, [user("milk")])
        try:
            assert await found(store, owner, query) == set()
        except InvalidInput:
            assert query in ("-tea", "%")

    @PROPERTY
    @given(text=st.text(max_size=80) | st.text("tea茶 \"*'():^-+{}OR\x00\ud7a3ｶﾞé", max_size=40))
    async def test_any_text_finds_itself(self, store: Store, owner: str, text: str) -> None:
        """Any text is a query that finds its own message, unless it excludes or has no words."""
        conversation = await store.create_conversation(owner, NewConversation())
        (message,) = await store.append(owner, conversation.id, [assistant(text)])
        query = text.replace("-", " ").replace("\uff0d", " ").replace("\ufe63", " ")
        try:
            page = await store.search_messages(owner, query, limit=1)
        except InvalidInput:
            assert not text.isalnum()
        else:
            assert page.items[0].message == message

    @pytest.mark.parametrize("query", ["", " ", "\n", "?!", "-", '""', "\x00", "\ud800", "…"])
    async def test_query_needs_a_word(self, store: Store, owner: str, query: str) -> None:
        """A query without a letter or digit is refused."""
        with pytest.raises(InvalidInput):
            await store.search_messages(owner, query)

    async def test_pages_of_hits(self, store: Store, owner: str) -> None:
        """Hits of all the owner's conversations come in pages, newest first, none twice."""
        conversations = [await store.create_conversation(owner, NewConversation(title=f"Talk {n}")) for n in range(3)]
        for number in range(31):
            await store.append(owner, conversations[number % 3].id, [user(f"tea {number}"), user(f"coffee {number}")])
        page = await store.search_messages(owner, "tea", limit=10)
        await store.append(owner, conversations[0].id, [user("tea, too late")])
        hits = page.items
        while page.next:
            page = await store.search_messages(owner, "tea", limit=10, cursor=page.next)
            hits = hits + page.items
        assert [hit.message.content for hit in hits] == [f"tea {number}" for number in reversed(range(31))]
        assert [hit.title for hit in hits[:3]] == ["Talk 0", "Talk 2", "Talk 1"]
        assert len(await whole_search(store, owner, "tea", limit=1)) == 32

    async def test_search_in_one_conversation(self, store: Store, owner: str, conversation: Conversation) -> None:
        """With a conversation only its messages are found, on all branches, deleted ones not, page by page."""
        other = await store.create_conversation(owner, NewConversation())
        stored = await store.append(owner, conversation.id, [user(f"tea {number}") for number in range(7)])
        await store.append(owner, other.id, [user(f"tea {number}") for number in range(20, 30)])
        await store.append(owner, conversation.id, [user("mint tea 8", parent_id=stored[2].id)])
        await store.delete_message(owner, conversation.id, stored[1].id)
        for limit in (2, 20):
            hits = await whole_search(store, owner, "tea", limit, conversation_id=conversation.id)
            assert [hit.message.seq for hit in hits] == [8, 7, 6, 5, 4, 3, 1]
            assert {hit.message.conversation_id for hit in hits} == {conversation.id}
            hits = await whole_search(store, owner, '"tea 8" -ice', limit, conversation_id=str(conversation.id))
            assert [hit.message.content for hit in hits] == ["mint tea 8"]
        assert len(await whole_search(store, owner, "tea")) == 17
        empty = await store.create_conversation(owner, NewConversation())
        assert await whole_search(store, owner, "tea", conversation_id=empty.id) == []

    async def test_search_in_a_conversation_that_is_not_there(self, open_store_with: Opener, owner: str) -> None:
        """A conversation that nobody has, or somebody else, is answered as everywhere."""
        async with open_store_with(hide_foreign=False) as store:
            theirs = await store.create_conversation(someone(), NewConversation())
            gone = await store.create_conversation(owner, NewConversation())
            await store.delete_conversation(owner, gone.id)
            for id_, error in ((uuid4(), NotFound), (gone.id, NotFound), (theirs.id, NotYours)):
                with pytest.raises(error):
                    await store.search_messages(owner, "tea", conversation_id=id_)
            with pytest.raises(InvalidId):
                await store.search_messages(owner, "tea", conversation_id="tea")
        async with open_store_with(hide_foreign=True) as store:
            theirs = await store.create_conversation(someone(), NewConversation())
            with pytest.raises(NotFound):
                await store.search_messages(owner, "tea", conversation_id=theirs.id)

    async def test_cursor_belongs_to_its_search(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A cursor is refused for another query, owner or conversation."""
        await store.append(owner, conversation.id, [user("tea 1"), user("tea 2")])
        cursor = (await store.search_messages(owner, "tea", limit=1)).next
        assert cursor is not None
        for who, query in ((owner, "tea 1"), (someone(), "tea")):
            with pytest.raises(InvalidInput):
                await store.search_messages(who, query, cursor=cursor)
        with pytest.raises(InvalidInput):
            await store.search_messages(owner, "tea", cursor=cursor, conversation_id=conversation.id)
        within = (await store.search_messages(owner, "tea", limit=1, conversation_id=conversation.id)).next
        with pytest.raises(InvalidInput):
            await store.search_messages(owner, "tea", cursor=within)

    async def test_snippet_shows_the_place(self, store: Store, owner: str, conversation: Conversation) -> None:
        """The snippet is one line around the first match, cut to a readable length."""
        for word, filler in (("saffron", "Plain words here.\n"), ("番红花", "这里只有普通的文字。")):
            await store.append(owner, conversation.id, [assistant(f"{filler * 50} {word} {filler * 50}")])
            (hit,) = await whole_search(store, owner, word)
            assert word in hit.snippet
            assert len(hit.snippet) <= 170
            assert "\n" not in hit.snippet

    async def test_first_200000_characters_are_searched(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """Only the first 200,000 characters of a message are searched; all of it is stored."""
        filler = "tea " * 50_000
        await store.append(owner, conversation.id, [assistant(f"{filler[:-8]} sage {filler} thyme")])
        await store.append(owner, conversation.id, [assistant(f"{'茶' * 199_998}花草薄荷")])
        assert len(await whole_search(store, owner, "sage")) == 1
        assert len(await whole_search(store, owner, "花草")) == 1
        assert await whole_search(store, owner, "thyme") == []
        assert await whole_search(store, owner, "薄荷") == []

    async def test_search_can_be_off(self, open_store_with: Opener, owner: str) -> None:
        """A store with search=off stores and reads, and refuses to search."""
        async with open_store_with(search=False) as store:
            conversation = await store.create_conversation(owner, NewConversation())
            stored = await store.append(owner, conversation.id, [user("tea"), user("coffee")])
            await store.delete_message(owner, conversation.id, stored[0].id)
            assert contents((await store.history(owner, conversation.id)).items) == ["coffee"]
            with pytest.raises(InvalidInput, match="search"):
                await store.search_messages(owner, "tea")
            receipt = await store.erase_owner(owner)
            assert (receipt.messages, receipt.search_entries, receipt.remaining) == (2, 0, 0)
