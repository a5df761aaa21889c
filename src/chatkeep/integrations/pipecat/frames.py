"""Intercepts the frames that pass an aggregator."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pipecat.processors.frame_processor import FrameProcessor

logger = logging.getLogger(__package__)

type Handler = Callable[[Any], None]
type Handlers = Mapping[type, Handler]


class Frames:
    """The frames of an aggregator: handlers for their types get them before it receives or sends them, or after.

    Pipecat's events for this take 10 µs each, four times a frame, with fifty frames a second of which nearly none
    matters here. The handlers of a type of frame are looked up once. Register them before the pipeline runs.
    """

    def __init__(self, aggregator: "FrameProcessor") -> None:
        self._received: list[Handlers] = []
        self._taken: list[Handlers] = []
        self._sent: list[Handlers] = []
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


def _intercept(
    aggregator: "FrameProcessor",
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


def _handle(handler: Handler, frame: object) -> None:
    """Call a handler. Its errors are logged, and the conversation continues."""
    try:
        handler(frame)
    except Exception:
        logger.exception("a %s was not understood", type(frame).__name__)
