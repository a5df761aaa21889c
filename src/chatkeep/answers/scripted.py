"""A provider that plays a script: for tests of what makes, stores and shows answers, and for demonstrations."""

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from chatkeep.answers.provider import Asked, Provider, ProviderFailed
from chatkeep.events import Event, EventKind, reasoning, text

type Step = Event | float | Exception
"""An event; a pause in seconds; or an error that the provider raises."""

DIRECTIVES = re.compile(r"\b(rate|tokens|reasoning|tool|sources|silence|error|cut)=(\d+(?:\.\d+)?)")

SILENCE_SECONDS = 3_600.0


class ScriptedProvider(Provider):
    """Plays the same steps for every question; without any, what the question asks for.

    A question is answered with its own words, about one token for each, after a thought, a call of a tool and a source.
    It may change that, by a number each:

        tokens=800    so many tokens
        rate=200      tokens a second; 0: all at once
        reasoning=5   tokens of reasoning before them
        tool=5000000  a tool that is called before them, with a result of so many bytes
        sources=3     so many sources after them
        error=10      the provider fails after so many tokens
        silence=10    it says nothing more after so many tokens
        cut=10        the answer ends after so many tokens, without usage
    """

    def __init__(self, script: Sequence[Step] | None = None, *, model: str = "scripted", rate: float = 20.0) -> None:
        """Take the steps, and how many tokens a second there are in an answer to a question that does not say it."""
        self.model = model
        self._rate = rate
        self._script = script
        self.asked = 0
        """How many answers were begun: each would cost money."""

    async def answer(self, asked: Asked) -> AsyncGenerator[Event]:
        self.asked += 1
        script = self._script if self._script is not None else script_of(asked.question.content, self._rate)
        loop = asyncio.get_running_loop()
        due = loop.time()
        for step in script:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, Event):
                yield step
                continue
            due += step
            await asyncio.sleep(max(due - loop.time(), 0))


def script_of(question: str, rate: float = 20.0) -> list[Step]:
    """Return the steps that a question asks for."""
    given = {name: float(value) for name, value in DIRECTIVES.findall(question)}
    words = DIRECTIVES.sub("", question).split() or ["…"]
    count, pause = int(given.get("tokens", len(words))), _pause(given.get("rate", rate))
    before = [*_thoughts(int(given.get("reasoning", 3)), pause), *_tool(given.get("tool", 80.0))]
    steps: list[Step] = []
    for number in range(count):
        steps += _ending(given, number)
        steps += [text(f"{words[number % len(words)]} "), pause]
    end = [] if "cut" in given else [_usage(question, count)]
    whole = [*before, *steps, *_ending(given, count), *_sources(int(given.get("sources", 1))), *end]
    return _up_to_the_cut(whole, given.get("cut"))


def _pause(rate: float) -> float:
    return 1 / rate if rate else 0.0


def _thoughts(count: int, pause: float) -> list[Step]:
    return [step for number in range(count) for step in (reasoning(f"thought {number + 1}. "), pause)]


def _tool(size: float) -> list[Step]:
    if not size:
        return []
    call = {"id": "call-1", "name": "search_documents", "arguments": {"query": "tea"}}
    result = {"tool_call_id": "call-1", "content": "leaf " * (int(size) // 5), "is_error": False}
    return [Event(EventKind.TOOL_CALL, call), Event(EventKind.TOOL_RESULT, result)]


def _sources(count: int) -> list[Step]:
    return [Event(EventKind.SOURCE, _source(number)) for number in range(1, count + 1)]


def _source(number: int) -> dict[str, Any]:
    place = {"file_path": f"tea/{number}.md", "header_anchor": "#steeping", "similarity_score": round(1 / number, 3)}
    return {"id": f"source-{number}", "document_id": str(uuid5(NAMESPACE_OID, f"tea {number}")), **place}


def _usage(question: str, tokens: int) -> Event:
    return Event(EventKind.USAGE, {"input_tokens": len(question.split()), "output_tokens": tokens})


def _ending(given: Mapping[str, float], number: int) -> list[Step]:
    """What ends the answer before a token."""
    if given.get("error") == number:
        return [ProviderFailed("the script says that the model fails here")]
    return [SILENCE_SECONDS] if given.get("silence") == number else []


def _up_to_the_cut(steps: list[Step], tokens: float | None) -> list[Step]:
    if tokens is None:
        return steps
    texts = [place for place, step in enumerate(steps) if isinstance(step, Event) and step.kind is EventKind.TEXT]
    return steps[: texts[int(tokens)]] if int(tokens) < len(texts) else steps
