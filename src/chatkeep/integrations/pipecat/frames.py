"""Intercepts what passes an aggregator: frames, the texts that it writes to the context, and its end."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from chatkeep.recorder.log import say

if TYPE_CHECKING:
    from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregator

logger = logging.getLogger(__package__)

type Handler = Callable[[Any], None]
type Handlers = Mapping[type, Handler]


class Frames:
    """The frames of an aggregator: handlers for their types get them before it receives or sends them, or after.

    Pipecat's events for this take 10 µs each, four times a frame, with fifty frames a second of which nearly none
    matters here. The handlers of a type of frame are looked up once. Register them before the pipeline runs.
    """

    def __init__(self, aggregator: "LLMContextAggregator") -> None:
        self.text: Callable[[], str] = aggregator.aggregation_string
        """Returns what the aggregator has gathered and not yet written to the context."""
        self._received: list[Handlers] = []
        self._taken: list[Handlers] = []
        self._sent: list[Handlers] = []
        self._written: list[Handler] = []
        self._released: list[Handler] = []
        _intercept_text(aggregator, self._written)
        _intercept_cleanup(aggregator, self._released)
        _intercept(aggregator, "process_frame", self._received, self._taken)
        _intercept(aggregator, "push_frame", self._sent, [])

    def before_received(self, handlers: Handlers) -> None:
        """Call handlers before the aggregator processes a frame."""
        self._received.append(handlers)

    def after_received(self, handlers: Handlers) -> None:
        """Call handlers after the aggregator processed a frame; of rare frames, as this costs a coroutine."""
        self._taken.append(handlers)

    def before_sent(self, handlers: Handlers) -> None:
        """Call handlers before the aggregator pushes a frame."""
        self._sent.append(handlers)

    def before_written(self, handler: Handler) -> None:
        """Call a handler with a text before the aggregator writes it to the context: not every one has a frame."""
        self._written.append(handler)

    def before_released(self, handler: Handler) -> None:
        """Call a handler before the aggregator is cleaned up: the frame that ends a pipeline may get stuck in it."""
        self._released.append(handler)


def _intercept_text(aggregator: "LLMContextAggregator", handlers: list[Handler]) -> None:
    original = aggregator.aggregation_string

    def intercepted() -> str:
        text = original()
        for handler in handlers:
            _handle(handler, text)
        return text

    setattr(aggregator, "aggregation_string", intercepted)  # noqa: B010 - it is a method


def _intercept_cleanup(aggregator: "LLMContextAggregator", handlers: list[Handler]) -> None:
    original: Callable[[], Awaitable[None]] = aggregator.cleanup

    async def intercepted() -> None:
        for handler in handlers:
            _handle(handler, aggregator)
        await original()

    setattr(aggregator, "cleanup", intercepted)  # noqa: B010 - it is a method


def _intercept(
    aggregator: "LLMContextAggregator",
    method: Literal["process_frame", "push_frame"],
    before: list[Handlers],
    after: list[Handlers],
) -> None:
    by_type: dict[type, tuple[tuple[Handler, ...], tuple[Handler, ...]] | None] = {}
    original: Callable[..., Awaitable[None]] = getattr(aggregator, method)

    def intercepted(frame: object, *arguments: object, **named: object) -> Awaitable[None]:
        try:
            handlers = by_type[type(frame)]
        except KeyError:
            first, then = _of(type(frame), before), _of(type(frame), after)
            handlers = by_type[type(frame)] = (first, then) if first or then else None
        if handlers is None:
            return original(frame, *arguments, **named)
        for handler in handlers[0]:
            _handle(handler, frame)
        passed = original(frame, *arguments, **named)
        return _and_then(passed, handlers[1], frame) if handlers[1] else passed

    setattr(aggregator, method, intercepted)


def _of(kind: type, registered: list[Handlers]) -> tuple[Handler, ...]:
    """Return the handler that is nearest to a type of frame, from each mapping that has one."""
    nearest = (next((handlers[each] for each in kind.__mro__ if each in handlers), None) for handlers in registered)
    return tuple(handler for handler in nearest if handler is not None)


async def _and_then(passed: Awaitable[None], handlers: tuple[Handler, ...], frame: object) -> None:
    await passed
    for handler in handlers:
        _handle(handler, frame)


def _handle(handler: Handler, given: object) -> None:
    """Call a handler. Its errors are logged, and the conversation continues."""
    try:
        handler(given)
    except Exception as error:  # noqa: BLE001 - whatever it is, the pipeline goes on
        say(logger, logging.ERROR, "a %s was not understood", type(given).__name__, error=error)
