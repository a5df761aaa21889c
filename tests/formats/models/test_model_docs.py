"""The function of the page about what a model is given; tests/documents runs the page."""

import re
from pathlib import Path
from typing import Any

from chatkeep import NewConversation, NewMessage, Role, open_store
from chatkeep.testing import someone

PAGE = Path(__file__).parents[3] / "docs" / "models.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


async def test_a_history_is_read_as_far_as_is_needed() -> None:
    """The function of the page, with a store: what it returns is the newest, and counts what it has not read."""
    names: dict[str, Any] = {}
    (block,) = (block for block in BLOCKS if "def latest" in block)
    exec(compile(block, str(PAGE), "exec"), names)
    owner = someone()
    async with open_store("memory://") as store:
        conversation = await store.create_conversation(owner, NewConversation())
        roles = (Role.USER, Role.ASSISTANT)
        messages = [NewMessage(role=roles[n % 2], content=f"Message {n}") for n in range(350)]
        await store.append(owner, conversation.id, messages)
        some, all_ = [await names["latest"](store, owner, conversation.id, budget) for budget in (1_000, 100_000)]
    assert (all_.left_out, len(all_.messages), all_.summary) == (0, 350, None)
    assert (some.left_out, some.messages[-1].content) == (350 - len(some.messages), "Message 349")
    assert (some.messages[0].role, 100 < len(some.messages) < 200) == (Role.USER, True)
    assert some.summary.startswith(f"[{some.left_out} earlier messages, until ")
