"""What is said of values that a record cannot have."""

import traceback
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from chatkeep import InvalidInput, NewConversation, NewMessage, Source, StoreOptions
from chatkeep.model import Record, Span

SECRET = "zq7" * 200
SAID: dict[str, Any] = {"role": "user", "content": "x"}
PLACE: dict[str, Any] = {"document_id": "0190f0f0-7a3c-7cc2-b1c3-2f6c1d9e8a75", "file_path": "a", "similarity_score": 1}


@pytest.mark.parametrize(
    ("kind", "values", "text"),
    [
        (NewMessage, {"role": "user", "content": " "}, "the content of a user message must not be blank"),
        (NewMessage, {"content": SECRET}, "role is missing"),
        (NewMessage, {**SAID, "role": SECRET}, "role must be one of 'user', 'assistant', 'system' or 'tool'"),
        (NewMessage, {"role": "user", "content": [SECRET]}, "content must be text (got 'list')"),
        (NewMessage, {**SAID, "id": SECRET}, "id must be a UUID, such as 0190f0f0-7a3c-7cc2-b1c3-2f6c1d9e8a75"),
        (NewMessage, {**SAID, "input_tokens": -1}, "input_tokens must be at least 0"),
        (NewMessage, {**SAID, "sources": [PLACE, {**PLACE, "file_path": ""}]}, "sources.1.file_path must not be blank"),
        (NewConversation, {"title": SECRET}, "title may have at most 255 characters (got '600 characters')"),
        (NewConversation, {"labels": ["a", "!b"]}, "labels.1 must not begin with '!'"),
        (NewConversation, {"title": "", "context_id": ""}, "title must not be empty (and 1 more)"),
        (Span, {"start": 2, "end": 1}, "a span ends at or after its start"),
        (Span, {"start": 0, "end": 1, "ned": 2}, "Span has an unknown field; known are start, end (got 'ned')"),
        (Source, {**PLACE, "similarity_score": 2}, "similarity_score must be at most 1.0"),
        (StoreOptions, {"write_timeout": 0}, "write_timeout must be more than 0.0"),
    ],
)
def test_a_constructor_raises_invalid_input(kind: type[Record], values: dict[str, Any], text: str) -> None:
    """The text names the field, what is wrong and the limit, in chatkeep's words, and never repeats what was given."""
    with pytest.raises(InvalidInput) as refused:
        kind(**values)
    assert str(refused.value) == text
    assert "zq7" not in "".join(traceback.format_exception(refused.value)).replace(repr(values), "")
    assert refused.value.detail == text.partition(" (got")[0]


def test_a_long_name_is_cut() -> None:
    """Of an unknown field's name only the beginning is repeated."""
    with pytest.raises(InvalidInput, match="unknown field") as refused:
        NewMessage(**SAID | {SECRET: 1})
    assert len(str(refused.value)) < 300


def test_pydantic_validates_as_ever() -> None:
    """What is not a constructor raises pydantic's error: of a record, and of one inside of something else."""
    for validate in (NewMessage.model_validate, TypeAdapter(NewMessage).validate_python):
        with pytest.raises(ValidationError):
            validate({"role": "user", "content": ""})
    with pytest.raises(ValidationError):
        TypeAdapter(list[NewMessage]).validate_json('[{"role": "user", "content": ""}]')
