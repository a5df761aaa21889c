"""The provider that plays a script."""

import subprocess
import sys
from collections.abc import AsyncGenerator
from uuid import UUID

import pytest

from chatkeep import Message, NewConversation, open_store
from chatkeep.answers.provider import Asked, ProviderFailed
from chatkeep.events import Event, EventKind, TurnEvent, fold
from chatkeep.testing import ScriptedProvider, user

WITHOUT_PYTEST = """
import sys
from collections.abc import AsyncGenerator
sys.modules["pytest"] = sys.modules["hypothesis"] = None
from chatkeep.api.providing import provider_of
from chatkeep.settings import Settings
print(provider_of(Settings(provider="scripted"), None).model)
"""


def test_a_server_plays_it_without_pytest() -> None:
    """The extra `testing` is for tests: an installed server does not have it."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_PYTEST], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("scripted\n", 0), done.stderr


async def played(question: str) -> list[TurnEvent]:
    """What the script says to a question, without pauses; where it fails that raises."""
    async with open_store("memory://") as store:
        talk = await store.create_conversation("ada", NewConversation())
        asked: Message = (await store.append("ada", talk.id, user(question)))[0]
        provider = ScriptedProvider(rate=0)
        events = provider.answer(Asked(store, "ada", talk.id, asked, UUID(int=1)))
        return [TurnEvent(n, *event) async for n, event in aenumerate(events)]


async def aenumerate(events: AsyncGenerator[Event]) -> AsyncGenerator[tuple[int, Event]]:
    """Number events from 1."""
    n = 0
    async for event in events:
        n += 1
        yield n, event


async def test_what_a_question_asks_for() -> None:
    """Numbers in the question say how long the answer is and what else it has."""
    folded = fold(await played("how hot? tokens=5 reasoning=2 tool=1000 sources=3"))
    assert folded.content == "how hot? how hot? how "
    assert [part["type"] for part in folded.parts or ()] == [
        "reasoning",
        "tool_call",
        "tool_result",
        "text",
        *["source"] * 3,
    ]
    assert (len(folded.sources), folded.output_tokens) == (3, 5)


async def test_how_it_ends() -> None:
    """It may be cut off, or fail after some tokens."""
    cut = await played("tea tokens=9 cut=2 reasoning=0 tool=0 sources=0")
    assert [event.kind for event in cut] == [EventKind.TEXT] * 2
    with pytest.raises(ProviderFailed):
        await played("tea tokens=9 error=3")
