"""Builders of messages and owners, and short forms of what a test compares."""

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from chatkeep.model import Message, NewMessage, Role


def user(content: str, **values: Any) -> NewMessage:
    """Return a user's message."""
    return NewMessage(role=Role.USER, content=content, **values)


def assistant(content: str, **values: Any) -> NewMessage:
    """Return an assistant's message."""
    return NewMessage(role=Role.ASSISTANT, content=content, **values)


def numbered(count: int, prefix: str = "turn") -> list[NewMessage]:
    """Return an assistant's messages with distinct ids and numbered contents."""
    return [assistant(f"{prefix} {number}", id=uuid4()) for number in range(count)]


def someone() -> str:
    """Return an owner that nothing else uses."""
    return f"owner-{uuid4()}"


def seqs(messages: Sequence[Message]) -> list[int]:
    """Return the seqs of messages."""
    return [message.seq for message in messages]


def contents(messages: Sequence[Message]) -> list[str]:
    """Return the contents of messages."""
    return [message.content for message in messages]


def dense(count: int) -> list[int]:
    """Return the seqs 1, 2, 3 … count."""
    return list(range(1, count + 1))
