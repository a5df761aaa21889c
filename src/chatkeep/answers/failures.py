"""What the failures of models mean, for the person who asked.

What a provider says is for the log only: it may name keys and accounts, or be a page of HTML.
"""

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx2
from pydantic import ValidationError

from chatkeep.answers.hosts import HostRefused
from chatkeep.answers.provider import ProviderFailed
from chatkeep.events import LIMIT, PROVIDER, TIMEOUT

if TYPE_CHECKING:
    from pydantic_ai.exceptions import ModelAPIError

REFUSED_HOST = "this server does not connect to the address of the model; an administrator can change that"
UNREACHABLE = "the model cannot be reached"
CUT_OFF = "the connection to the model broke off"
TOO_SLOW = "the model did not answer in time"
REFUSED_KEY = "the provider of the model refuses this server's key"
UNKNOWN_MODEL = "the provider does not know the model, or its address is wrong"
USED_UP = "the quota of this server at the provider of the model is used up"
BUSY = "the model has too many requests at the moment; try again a little later"
OVERLOADED = "the provider of the model is overloaded; try again a little later"
OUT_OF_ORDER = "the provider of the model is out of order"
REJECTED = "the provider of the model does not accept the request"
TOO_LONG = "the conversation is longer than the model can read"
REFUSAL = "the model refuses to answer this"
TOO_MANY_STEPS = "the answer took more steps than an answer may take"
NO_ROOM = "the answer is longer than the model may write"
WRONG_CALLS = "the model called a tool wrongly, again and again"
INCOMPREHENSIBLE = "the model answered in a way that cannot be understood"

SDKS = frozenset({"openai", "anthropic", "google"})
"""Packages whose errors are those of a provider, also if pydantic-ai did not wrap them."""

MAX_CAUSES = 20


def failure_of(error: BaseException) -> ProviderFailed | None:
    """Return what the failure of a model means; None for an error that is no such failure.

    The reason has nothing of what the provider said. Its kind is TIMEOUT, LIMIT or PROVIDER. Of a group of errors the
    first that means something counts.
    """
    if isinstance(error, ProviderFailed):
        return error
    if isinstance(error, asyncio.CancelledError):
        return None
    if isinstance(error, BaseExceptionGroup):
        return next((found for each in error.exceptions if (found := failure_of(each))), None)
    if any(isinstance(cause, HostRefused) for cause in _causes(error)):
        return ProviderFailed(REFUSED_HOST)
    return _of_model(error) or _of_connection(error) or _of_library(error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    each: BaseException | None = error
    for _ in range(MAX_CAUSES):
        if each is None:
            return
        yield each
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)


def described(error: BaseException) -> str:
    """Return what an error is, for the log: its kind, those of its causes, and the status of a response.

    Nothing of their texts: a provider may repeat a key in them.
    """
    status = getattr(error, "status_code", None)
    kinds = " from ".join(f"{type(cause).__module__}.{type(cause).__qualname__}" for cause in _causes(error))
    return kinds if status is None else f"{kinds} ({status})"


# --- pydantic-ai ------------------------------------------------------------------------------------------


def _of_model(error: BaseException) -> ProviderFailed | None:
    from pydantic_ai import exceptions as ai

    if isinstance(error, ai.ModelAPIError):
        return _of_api(error)
    if isinstance(error, ai.UsageLimitExceeded):
        return ProviderFailed(TOO_MANY_STEPS, LIMIT)
    if isinstance(error, ai.ContentFilterError):
        return ProviderFailed(REFUSAL)
    if isinstance(error, ai.OutputTokenLimitExceeded):
        return ProviderFailed(NO_ROOM, LIMIT)
    if isinstance(error, ai.UnexpectedModelBehavior):
        return ProviderFailed(WRONG_CALLS if any(map(_is_wrong_call, _causes(error))) else INCOMPREHENSIBLE)
    return None


def _is_wrong_call(cause: BaseException) -> bool:
    """Whether a tool did not take its arguments, or was not there."""
    from pydantic_ai.exceptions import ModelRetry, ToolRetryError
    from pydantic_ai.messages import ToolReturnPart

    if isinstance(cause, ToolRetryError):
        return isinstance(cause.tool_retry, ToolReturnPart)
    return isinstance(cause, ModelRetry | ValidationError)


def _of_api(error: "ModelAPIError") -> ProviderFailed:
    from pydantic_ai import exceptions as ai

    meanings: tuple[tuple[type[BaseException], str, str], ...] = (
        (ai.ModelRequestTimeout, TOO_SLOW, TIMEOUT),
        (ai.ModelTimeoutError, TOO_SLOW, TIMEOUT),
        (ai.ModelQuotaExceededError, USED_UP, PROVIDER),
        (ai.ModelRateLimitError, BUSY, PROVIDER),
        (ai.ModelUnavailableError, OVERLOADED, PROVIDER),
        (ai.ModelContextWindowExceededError, TOO_LONG, LIMIT),
        (ai.ModelAuthenticationError, REFUSED_KEY, PROVIDER),
        (ai.ModelNotFoundError, UNKNOWN_MODEL, PROVIDER),
    )
    for kind, reason, of in meanings:
        if isinstance(error, kind):
            return ProviderFailed(reason, of)
    if isinstance(error, ai.ModelHTTPError):
        return _of_status(error.status_code)
    if isinstance(error, ai.ModelConnectionError):
        return ProviderFailed(CUT_OFF) if error.phase == "read" else _of_cause(error) or ProviderFailed(UNREACHABLE)
    is_rejected = isinstance(error, ai.ModelRequestRejectedError)
    return _of_cause(error) or ProviderFailed(REJECTED if is_rejected else OUT_OF_ORDER)


def _of_cause(error: BaseException) -> ProviderFailed | None:
    """What an error means that pydantic-ai knows nothing of but its cause."""
    for cause in list(_causes(error))[1:]:
        if found := _of_connection(cause):
            return found
    return None


def _of_status(status: int) -> ProviderFailed:
    """What the status of a response means."""
    if status in {408, 504}:
        return ProviderFailed(TOO_SLOW, TIMEOUT)
    if status == 413:
        return ProviderFailed(TOO_LONG, LIMIT)
    reasons = {401: REFUSED_KEY, 402: USED_UP, 403: REFUSED_KEY, 404: UNKNOWN_MODEL, 429: BUSY, 503: OVERLOADED}
    if status == 529:
        return ProviderFailed(OVERLOADED)
    return ProviderFailed(reasons.get(status) or (OUT_OF_ORDER if status >= 500 else REJECTED))


# --- below pydantic-ai ------------------------------------------------------------------------------------


def _of_connection(error: BaseException) -> ProviderFailed | None:
    if isinstance(error, TimeoutError | httpx2.TimeoutException):
        return ProviderFailed(TOO_SLOW, TIMEOUT)
    if isinstance(error, httpx2.ReadError | httpx2.RemoteProtocolError | httpx2.DecodingError | httpx2.StreamError):
        return ProviderFailed(CUT_OFF)
    if isinstance(error, httpx2.HTTPError | httpx2.InvalidURL):
        return ProviderFailed(UNREACHABLE)
    return None


def _of_library(error: BaseException) -> ProviderFailed | None:
    """What an error of a provider's own library means."""
    if type(error).__module__.partition(".")[0] not in SDKS:
        return None
    status = getattr(error, "status_code", None) or getattr(error, "code", None)
    if isinstance(status, int) and 400 <= status < 600:
        return _of_status(status)
    return _of_cause(error) or ProviderFailed(OUT_OF_ORDER)
