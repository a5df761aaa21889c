"""Answers without a model: the best passages of a project's documents, quoted and cited."""

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from uuid import UUID

from chatkeep.answers.citations import Shelf, source_event
from chatkeep.answers.provider import Asked, ProviderFailed
from chatkeep.errors import ChatkeepError, InvalidInput
from chatkeep.events import Event, text
from chatkeep.retrieval.passages import MAX_QUESTION_CHARS, Passage, Passages
from chatkeep.words import words_of

type Search = Callable[[str, UUID, str, int], Awaitable[Passages]]
"""Searches the documents of an owner's project for a question, and returns the best passages, at most so many."""

SHOWN = 3
"""Passages that an answer quotes."""

MAX_QUOTED_CHARS = 700
"""Most characters of a passage that an answer quotes."""

BEGINNING = "No model is configured, so this answer is extractive: "
QUOTED = "these passages of the project's documents fit the question best.\n\n"
NOTHING = "no passage of the project's documents fits the question."
NO_PROJECT = "it quotes documents, and this conversation belongs to no project that has any."

SEARCH_FAILED = "the documents could not be searched; ask again in a moment"

PARAGRAPH = re.compile(r"\n\s*\n")


async def extract(asked: Asked, project_id: UUID | None, search: Search) -> AsyncGenerator[Event]:
    """Answer a question by the passages that a search finds for it. Raises ProviderFailed."""
    if project_id is None:
        yield text(BEGINNING + NO_PROJECT)
        return
    found = await searched(search, asked.owner, project_id, asked.question.content, SHOWN)
    if not found:
        yield text(BEGINNING + NOTHING)
        return
    place = len(BEGINNING + QUOTED)
    yield text(BEGINNING + QUOTED)
    quotes = [_quoted(passage, asked.question.content) for passage in found]
    sources = list[Event]()
    for number, passage in enumerate(quotes, 1):
        quote = "\n".join(f"> {line}" if line.strip() else ">" for line in passage.text.splitlines())
        yield text(f"{quote}\n>\n> — {_named(passage)} [{number}]\n\n")
        sources += _source(number, passage, place, place + len(quote))
        place += len(f"{quote}\n>\n> — {_named(passage)} [{number}]\n\n")
    for source in sources:
        yield source


async def searched(search: Search, owner: str, project_id: UUID, question: str, limit: int) -> list[Passage]:
    """Return what a search finds. Raises ProviderFailed if the documents cannot be searched now."""
    if not question.strip():
        return []
    try:
        return (await search(owner, project_id, question[:MAX_QUESTION_CHARS], limit)).items
    except InvalidInput:
        raise
    except ChatkeepError as error:
        raise ProviderFailed(SEARCH_FAILED) from error


def _source(number: int, passage: Passage, start: int, end: int) -> Iterator[Event]:
    shelf = Shelf()
    (kept,) = shelf.kept(shelf.add([passage]))
    del kept["number"]
    yield source_event(number, kept, {"start": start, "end": end})


def _quoted(passage: Passage, question: str) -> Passage:
    """The part of a passage that is quoted: it begins with the paragraph that has most words of the question."""
    asked = set(words_of(question))
    ends = [match.end() for match in PARAGRAPH.finditer(passage.text)]
    starts = [0, *ends]
    best = max(
        zip(starts, [*ends, len(passage.text)], strict=True),
        key=lambda part: (len(asked.intersection(words_of(passage.text[slice(*part)]))), -part[0]),
    )
    first = best[0] if len(passage.text) > MAX_QUOTED_CHARS else 0
    quote = _cut(passage.text[first : first + MAX_QUOTED_CHARS + 1]).rstrip()
    return passage.model_copy(update={"text": quote, "start": passage.start + first})


def _cut(text: str) -> str:
    """The text, cut at a word if it is too long."""
    if len(text) <= MAX_QUOTED_CHARS:
        return text
    at = max(text.rfind(" ", 0, MAX_QUOTED_CHARS), text.rfind("\n", 0, MAX_QUOTED_CHARS))
    return text[: at if at > MAX_QUOTED_CHARS // 2 else MAX_QUOTED_CHARS]


def _named(passage: Passage) -> str:
    """How a reader finds a passage: the file, and the section in it."""
    place = f"{passage.file_path}{passage.header_anchor or ''}"
    title = passage.heading or passage.title
    return f"{title}, {place}" if title else place
