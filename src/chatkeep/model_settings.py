"""The settings of a model that a provider's configuration may have. No I/O."""

from typing import Annotated, Literal, TypedDict

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from chatkeep.errors import InvalidInput
from chatkeep.validation import first_wrong
from chatkeep.values import JsonObject

type Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
type Seconds = Annotated[float, Field(ge=1, le=600, allow_inf_nan=False)]
type Words = Annotated[str, Field(min_length=1, max_length=200)]


class ModelSettings(TypedDict, total=False):
    """Plain settings, as pydantic-ai names them.

    Those are left out that could change where a request goes, or whose it is: headers and bodies of one's own.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    max_tokens: Annotated[int, Field(ge=1, le=10_000_000)]
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
    top_k: Annotated[int, Field(ge=1, le=1_000_000)]
    timeout: Seconds
    request_timeout: Seconds
    first_event_timeout: Seconds
    parallel_tool_calls: bool
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    presence_penalty: Penalty
    frequency_penalty: Penalty
    logit_bias: Annotated[dict[str, int], Field(max_length=1_000)]
    stop_sequences: Annotated[list[Words], Field(max_length=16)]
    thinking: bool | Literal["minimal", "low", "medium", "high", "xhigh", "max"]
    service_tier: Literal["auto", "default", "flex", "priority"]


SETTINGS = TypeAdapter(ModelSettings)


def checked_settings(settings: JsonObject) -> ModelSettings:
    """Return the settings of a model, those that are given.

    Raises InvalidInput for an unknown name and for a value that it cannot have; the message has the name only.
    """
    try:
        return SETTINGS.validate_python(settings)
    except ValidationError as error:
        first = first_wrong(error)
        if first.type == "extra_forbidden":
            known = ", ".join(ModelSettings.__annotations__)
            raise InvalidInput(f"settings: {first.field} is not a setting of a model; there are {known}") from None
        raise InvalidInput(f"settings: {first}") from None
