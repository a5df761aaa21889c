"""Answers that OpenAI makes in the background: another process can go on with them, and pays for nothing twice.

What OpenAI makes outlives the connection, and its id is remembered among the events of the turn as soon as it is known.
Whoever goes on asks for it again from its first event, which costs nothing, and leaves out what is stored already: from
a later event on, pydantic-ai would give the next request to the model only what came after that.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, override

from pydantic_ai import RunContext
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

from chatkeep.events import PROSE, Event, EventKind, TurnEvent

FIRST = 0
"""The number of an answer's first event, which has nothing of the answer but its id."""


class Followed(WrapperModel):
    """A model whose answers in the background are remembered, and cancelled only if nobody is to go on with them."""

    def __init__(
        self,
        wrapped: Model,
        remember: Callable[[dict[str, Any]], None],
        is_lost: Callable[[], bool],
        known: dict[str, Any] | None = None,
    ) -> None:
        """Take what remembers, what says whether another process goes on, and what is remembered already."""
        super().__init__(wrapped)
        self._remember = remember
        self._is_lost = is_lost
        self._known = known

    @override
    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        async with super().request_stream(messages, model_settings, model_request_parameters, run_context) as response:
            id_ = await _background_id(response)
            if id_ is not None and {"response_id": id_} != self._known:
                self._remember({"response_id": id_})
            yield response

    @override
    async def cancel_suspended_response(self, response: ModelResponse) -> None:
        if not self._is_lost():
            await super().cancel_suspended_response(response)

    @override
    def continuation_delay(self, response: ModelResponse) -> float | None:
        return None  # a person waits


async def _background_id(response: StreamedResponse) -> str | None:
    """The id of an answer that is made in the background, as soon as it is known: the first event has it.

    pydantic-ai tells it after that has been passed on, which may be a minute later.
    """
    stream = getattr(response, "_response", None)
    if not (response.provider_details or {}).get("background") or not hasattr(stream, "peek"):
        return None
    first = getattr(await stream.peek(), "response", None)  # type: ignore[union-attr]
    return None if first is None else first.id


def suspended(state: dict[str, Any], model: str) -> ModelResponse:
    """Return the answer to go on with. If it is the last message, it is read again from its first event."""
    return ModelResponse(
        parts=[],
        model_name=model,
        provider_name="openai",
        provider_response_id=state["response_id"],
        provider_details={"background": True, "last_sequence_number": FIRST},
        state="suspended",
    )


class Known:
    """What is stored of an answer that is read again from its first event: that much is left out."""

    def __init__(self, events: list[TurnEvent]) -> None:
        """Take the events since the state."""
        self._chars = {kind: sum(event.chars for event in events if event.kind is kind) for kind in PROSE}
        self._ends = sum(len(event.data) > 1 for event in events if event.kind in PROSE)
        """Pieces with more than text, which end a thought."""

    def rest(self, event: Event) -> Event | None:
        """Return what is new of an event; None if nothing is."""
        kind, data = event
        if kind not in PROSE:
            return event
        if len(data) > 1 and self._ends:
            self._ends -= 1
            return None
        known = min(self._chars[kind], len(data["text"]))
        self._chars[kind] -= known
        return Event(kind, data | {"text": data["text"][known:]}) if known < len(data["text"]) or not known else None


def divided(events: list[TurnEvent]) -> tuple[list[TurnEvent], list[TurnEvent]]:
    """Return the events before the last state, and those after it."""
    place = max(number for number, event in enumerate(events) if event.kind is EventKind.STATE)
    return events[:place], events[place + 1 :]
