"""What of a conversation a model is given."""

from collections.abc import Callable

from chatkeep.answers.provider import Asked
from chatkeep.formats.models.window import LATIN, Window, Windowing, estimate, tokens
from chatkeep.model import Message, Role, Status

HISTORY_TOKENS = 32_000
"""About how many tokens of a conversation a model is given, unless its provider is configured otherwise."""

MOST_LEADING = 10
"""Messages at the beginning of a conversation among which those of the system are looked for."""


async def given(asked: Asked, budget: int | None = None) -> Window:
    """Return the newest messages up to the question that have at most `budget` tokens, and what the system says first.

    Reads as much of the conversation as fits, however long it is.
    """
    budget = budget or HISTORY_TOKENS
    count = _counting(budget)
    leading = await _leading(asked)
    newest, is_all = await _newest(asked, budget, count)
    system = [*leading, *(each for each in reversed(newest) if each.role is Role.SYSTEM and each not in leading)]
    taken = Windowing(budget, count, system=system)
    for message in newest:
        if message.role is not Role.SYSTEM and not taken.add(message):
            break
    return taken.window(older=0 if is_all else None)


def _counting(budget: int) -> Callable[[str], int]:
    """What counts tokens. A text that surely has too many is not counted, which would take long if it is megabytes."""
    return lambda text: estimate(text) if len(text) <= LATIN * budget else len(text) // LATIN + 1


async def _leading(asked: Asked) -> list[Message]:
    """What the system says before anybody else does."""
    page = await asked.store.history(
        asked.owner, asked.conversation_id, order="asc", limit=MOST_LEADING, leaf=asked.question.id
    )
    others = (n for n, message in enumerate(page.items) if message.role is not Role.SYSTEM)
    return page.items[: next(others, len(page.items))]


async def _newest(asked: Asked, budget: int, count: Callable[[str], int]) -> tuple[list[Message], bool]:
    """The newest messages, the question first, until they have so many tokens; and whether those are all."""
    found = list[Message]()
    messages = asked.store.messages(asked.owner, asked.conversation_id, order="desc", leaf=asked.question.id, page=50)
    async for message in messages:
        if message.status is Status.IN_PROGRESS:
            continue
        found.append(message)
        budget -= tokens(message, count)
        if budget < 0:
            return found, False
    return found, True
