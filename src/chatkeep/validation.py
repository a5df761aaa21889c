"""Says what is wrong with a value, in the same words everywhere. No I/O.

Texts name the field, what is wrong with it and its limit. They never repeat a value, which may be private: at most its
type or its size.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self, get_args, overload

from pydantic import BaseModel, ValidationError

from chatkeep.errors import InvalidInput

WHOLE_NUMBER = "must be a whole number"
MESSAGES = {
    "missing": "is missing",
    "extra_forbidden": "is an unknown field",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_too_long": "may have at most {max_length:,} characters",
    "string_pattern_mismatch": "must match {pattern}",
    "bytes_too_short": "must have at least {min_length:,} bytes",
    "bytes_too_long": "may have at most {max_length:,} bytes",
    "too_long": "may have at most {max_length:,} items",
    "enum": "must be one of {expected}",
    "literal_error": "must be one of {expected}",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be a finite number",
    "dict_type": "must be a JSON object",
    "model_type": "must be a JSON object",
    "model_attributes_type": "must be a JSON object",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "timezone_aware": "must have a time zone, such as 2026-01-31T12:00:00Z",
    "uuid": "must be a UUID, such as 0190f0f0-7a3c-7cc2-b1c3-2f6c1d9e8a75",
    "int": WHOLE_NUMBER,
    "float": "must be a number",
    "bool": "must be true or false",
    "datetime": "must be a date and time with a time zone, such as 2026-01-31T12:00:00Z",
}
"""The message for each of pydantic's error types, by its name or by the part before the first `_`."""


MAX_NAME_CHARS = 40
"""How much of the name of an unknown field an error repeats."""


class Wrong(NamedTuple):
    """What is wrong with a value. As text, a sentence."""

    loc: tuple[int | str, ...]
    """The place in the value, as pydantic names it; names may be the caller's."""
    field: str
    """The place, by the names of fields; the name of the whole value if it is that, or has an unknown field."""
    message: str
    is_whole: bool = False
    """Whether it is about the whole value: such messages name their subject."""
    got: str | None = None
    """The type or the size of what was given, or the name of the unknown field."""
    cause: Exception | None = None
    """The error that a validator raised."""
    type: str = ""
    """Pydantic's name of the error."""

    def __str__(self) -> str:
        if self.message.startswith(("is ", "has ", "must ", "may ")):
            return f"{self.field} {self.message}"
        return self.message if self.is_whole else f"{self.field}: {self.message}"


def all_wrong(error: ValidationError, record: Any = None, whole: str = "the value") -> list[Wrong]:
    """Return what is wrong with a value that should be a `record`, which may be a type of several; None: any value."""
    return [wrong(each, record, whole) for each in error.errors(include_url=False)]


def first_wrong(error: ValidationError, record: Any = None, whole: str = "the value") -> Wrong:
    """Return the first thing that is wrong with a value."""
    return wrong(error.errors(include_url=False)[0], record, whole)


def wrong(error: Mapping[str, Any], record: Any = None, whole: str = "the value") -> Wrong:
    """Return what one of pydantic's errors says."""
    loc = tuple(error["loc"])
    path, inner = (list(map(str, loc)), None) if record is None else _path(record, loc)
    field = ".".join(path) or whole
    cause = error.get("ctx", {}).get("error")
    if error["type"] == "extra_forbidden" and inner is not None:
        noun = "parameter" if whole == "query" else "field"
        message = f"has an unknown {noun}; known are {', '.join(inner.model_fields)}"
        return Wrong(loc, field, message, not path, str(loc[-1])[:MAX_NAME_CHARS], type=error["type"])
    return Wrong(loc, field, _message(error), not path, _got(error), cause, error["type"])


def summary(found: Sequence[Wrong]) -> str:
    """Return the first of several errors as a sentence, and how many more there are."""
    more = len(found) - 1
    return str(found[0]) + (f" (and {more:,} more)" if more else "")


def _message(error: Mapping[str, Any]) -> str:
    type_ = error["type"]
    if type_ == "value_error":
        return _reason(error["ctx"]["error"])
    if error.get("ctx", {}).get("field_type") == "Value":
        type_ = f"string_{type_}"  # a text whose length pydantic checks after a validator of ours
    text = MESSAGES.get(type_) or MESSAGES.get(type_.split("_")[0]) or "is not valid"
    return text.format_map(error.get("ctx", {}))


def _reason(error: Exception) -> str:
    """Return what a validator of chatkeep's raised: without a value."""
    return error.detail if isinstance(error, InvalidInput) else str(error)


def _got(error: Mapping[str, Any]) -> str | None:
    """Return the type of a value of another type, or the size of one that is too long."""
    type_, value = error["type"], error.get("input")
    if type_.endswith("_type"):
        return type(value).__name__
    if type_.endswith("too_long") and isinstance(value, str):
        return f"{len(value):,} characters"
    if type_ == "too_long" and isinstance(value, list | tuple):
        return f"{len(value):,} items"
    return None


def _path(annotation: Any, parts: Sequence[str | int]) -> tuple[list[str], type[BaseModel] | None]:
    """Return the part of a location with chatkeep's names, and the record at its end. Other names are the caller's."""
    path: list[str] = []
    for part in parts:
        record = record_in(annotation)
        if isinstance(part, str):
            if record is None or part not in record.model_fields:
                break
            annotation = record.model_fields[part].annotation
        path.append(str(part))
    return path, record_in(annotation)


def record_in(annotation: Any) -> type[BaseModel] | None:
    """Return the record that `annotation` is or contains, as in `tuple[Source, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((record for inner in get_args(annotation) if (record := record_in(inner)) is not None), None)


if TYPE_CHECKING:
    CheckedModel = BaseModel

    class Accepts[Read, Given]:
        """The type of a field that accepts more types than it has: `Accepts[UUID, UUID | str]` is a UUID when read.

        Type checkers take the type of an argument from `__set__`. At run time it is its first argument.
        """

        @overload
        def __get__(self, instance: None, owner: Any) -> Self: ...
        @overload
        def __get__(self, instance: object, owner: Any) -> Read: ...
        def __get__(self, instance: object, owner: Any) -> Any: ...
        def __set__(self, instance: object, value: Given) -> None: ...

else:

    class Accepts:
        def __class_getitem__(cls, types: tuple[Any, Any]) -> Any:
            return types[0]

    class _Checked(type(BaseModel)):
        """Has constructors raise InvalidInput. What pydantic validates, such as a body, raises its own error."""

        def __call__(cls, /, **values: Any) -> Any:
            record = object.__new__(cls)
            try:  # as BaseModel's constructor does, which would cost another call
                cls.__pydantic_validator__.validate_python(values, self_instance=record)
            except ValidationError as error:
                found = all_wrong(error, cls, cls.__name__)
                raise InvalidInput(summary(found), got=found[0].got) from None
            return record

    class CheckedModel(BaseModel, metaclass=_Checked):
        """A model whose constructor raises InvalidInput."""


def untyped(value: object) -> Any:
    """Return the default of a field that `Accepts` more types than it has, which type checkers would refuse."""
    return value
