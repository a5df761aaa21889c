"""Vectors of texts and of questions, by the embedder that is configured.

What makes them is an `EmbeddingModel` of pydantic-ai: one of its own, or `LocalEmbedder`. Around it stands `Embedder`:
it bounds time, size and number of calls, and knows the space that the vectors are of.
"""

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from chatkeep.documents import MAX_DIMENSION, space_of
from chatkeep.errors import InvalidInput

if TYPE_CHECKING:
    from pydantic_ai.embeddings import EmbeddingModel
    from pydantic_ai.embeddings.result import EmbedInputType
    from pydantic_ai.exceptions import ModelAPIError

logger = logging.getLogger(__name__)

NONE, LOCAL = "none", "local"
"""Names of embedders that are not pydantic-ai's."""

MAX_TEXT_BYTES = 8_000
"""Bytes of a text that are embedded. A token has at least one: hosted models, which refuse longer texts, take 8,192."""

MAX_CACHED = 1_000
"""Questions whose vectors are kept."""

MAX_SPACES = 16
"""Embedders of former spaces that a process has at a time."""


class EmbeddingFailed(Exception):
    """There are no vectors now: search by words alone, and say so."""

    def __init__(self, reason: str, *, is_temporary: bool = False, retry_after: float | None = None) -> None:
        """Take the reason, which anybody may read, whether a retry may help, and when the embedder said it would."""
        self.reason = reason
        self.is_temporary = is_temporary
        self.retry_after = retry_after
        super().__init__(reason)


class EmbedLimits(NamedTuple):
    """How an embedder is called."""

    texts: int = 64
    """Most texts of a request."""
    request_bytes: int = 256_000
    """Most bytes of a request's texts."""
    requests: int = 4
    """Most requests for documents at a time."""
    questions: int = 16
    """Most requests for questions at a time."""
    question_seconds: float = 5.0
    request_seconds: float = 30.0
    attempts: int = 4
    """How often a request for documents is made; one for a question is made once."""
    pauses: tuple[float, float] = (1.0, 30.0)
    """First and longest pause before the next attempt, in seconds."""


HOSTED_LIMITS = EmbedLimits()

LOCAL_LIMITS = EmbedLimits(requests=1, request_seconds=120.0, attempts=1)
"""One request at a time: the model has one thread. Alone it takes a few seconds, on a busy machine longer."""


@runtime_checkable
class _Closes(Protocol):
    async def aclose(self) -> None: ...


class Embedder:
    """Makes vectors: numbers of 32 bits, little-endian, of the length 1 together. Methods raise EmbeddingFailed."""

    def __init__(
        self,
        model: "EmbeddingModel",
        *,
        name: str | None = None,
        space: str | None = None,
        limits: EmbedLimits = HOSTED_LIMITS,
    ) -> None:
        """Take the model, its name in that of its space, the space if other vectors would be of no use, and limits."""
        self._model = model
        self.name = name or f"{model.system}:{model.model_name}"
        self.space = space
        """The space of the vectors; None until the first one is made."""
        self.limits = limits
        self._requests = asyncio.Semaphore(limits.requests)
        self._questions = asyncio.Semaphore(limits.questions)
        self._cached: OrderedDict[str, bytes] = OrderedDict()

    def makes(self, space: str) -> bool:
        """Whether its vectors are of a space, as far as is known now."""
        return space == self.space if self.space else space.rpartition("/")[0] == self.name

    async def known_space(self) -> str:
        """The space of the vectors; makes one if there was none yet."""
        if self.space:
            return self.space
        (vector,) = await self.documents(["tea"])
        return space_of(self.name, len(vector) // 4)

    async def query(self, text: str) -> bytes:
        """Return the vector of a question: soon, or not at all."""
        text = bounded(text)
        if vector := self._cached.get(text):
            self._cached.move_to_end(text)
            return vector
        (vector,) = await self._called([text], "query", self._questions, self.limits.question_seconds)
        self._cached[text] = vector
        if len(self._cached) > MAX_CACHED:
            self._cached.popitem(last=False)
        return vector

    async def documents(self, texts: Sequence[str]) -> list[bytes]:
        """Return the vectors of texts, in their order."""
        requests = list(_requests([bounded(text) for text in texts], self.limits))
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._retried(request)) for request in requests]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return list(chain.from_iterable(task.result() for task in tasks))

    async def aclose(self) -> None:
        """Close the model. Idempotent."""
        if isinstance(self._model, _Closes):
            await self._model.aclose()

    async def _retried(self, texts: list[str]) -> list[bytes]:
        pause, longest = self.limits.pauses
        for _ in range(self.limits.attempts - 1):
            try:
                return await self._called(texts, "document", self._requests, self.limits.request_seconds)
            except EmbeddingFailed as failed:
                if not failed.is_temporary:
                    raise
                wait = max(pause, failed.retry_after or 0.0)
                await asyncio.sleep(min(wait, longest) * random.uniform(0.8, 1.2))  # noqa: S311 - no secret
                pause *= 2
        return await self._called(texts, "document", self._requests, self.limits.request_seconds)

    async def _called(
        self, texts: list[str], kind: "EmbedInputType", semaphore: asyncio.Semaphore, seconds: float
    ) -> list[bytes]:
        """Call the model once. Who waits for documents waits as long as it takes, for a question within its time."""
        try:
            async with asyncio.timeout(seconds if kind == "query" else None), semaphore, asyncio.timeout(seconds):
                result = await self._model.embed(texts, input_type=kind, settings={"truncate": True})
        except Exception as error:
            failed = _failure(error, seconds)
            if failed is None:
                logger.exception("the embedder %s failed", self.name)
                failed = EmbeddingFailed(f"the embedder failed ({type(error).__name__})")
            raise failed from error
        if kind == "query":
            return self._packed(result.embeddings, len(texts))
        return await asyncio.to_thread(self._packed, result.embeddings, len(texts))

    def _packed(self, embeddings: Sequence[Sequence[float]], texts: int) -> list[bytes]:
        """The vectors in bytes, of the length 1; checked, because a model may return anything."""
        import numpy as np

        try:
            matrix = np.asarray(embeddings, dtype=np.float64)
        except (ValueError, TypeError):
            matrix = np.empty((0, 0))
        if matrix.ndim != 2 or len(matrix) != texts or not 0 < matrix.shape[1] <= MAX_DIMENSION:
            raise EmbeddingFailed("the embedder returned no vector, or one of another length, for a text")
        lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
        if not (np.isfinite(lengths).all() and (lengths > 0).all()):
            raise EmbeddingFailed("the embedder returned a vector with infinite numbers, or with zeros only")
        self._settle(matrix.shape[1])
        return [row.tobytes() for row in (matrix / lengths).astype("<f4")]

    def _settle(self, dimension: int) -> None:
        space = space_of(self.name, dimension)
        if self.space is None:
            self.space = space
        elif self.space != space:
            raise EmbeddingFailed("the embedder returned vectors of another dimension than before")


def embedded_text(heading: str, text: str) -> str:
    """The text of a chunk that is embedded: below its headings."""
    return bounded(f"{heading}\n{text}" if heading else text)


def bounded(text: str) -> str:
    """The first `MAX_TEXT_BYTES` of a text; a full stop for a blank one, which hosted models refuse."""
    text = text[:MAX_TEXT_BYTES]
    encoded = text.encode()
    if len(encoded) > MAX_TEXT_BYTES:
        text = encoded[:MAX_TEXT_BYTES].decode(errors="ignore")
    return text.strip() or "."


def _requests(texts: Sequence[str], limits: EmbedLimits) -> Iterator[list[str]]:
    """Divide texts into requests."""
    request: list[str] = []
    size = 0
    for text in texts:
        length = len(text.encode())
        if request and (len(request) == limits.texts or size + length > limits.request_bytes):
            yield request
            request, size = [], 0
        request.append(text)
        size += length
    if request:
        yield request


# --- failures ---------------------------------------------------------------------------------------------


def _failure(error: Exception, seconds: float) -> EmbeddingFailed | None:
    """What is wrong, without what a provider says: that may name keys. None if it is nothing that is known."""
    from pydantic_ai.exceptions import ModelAPIError

    if isinstance(error, EmbeddingFailed):
        return error
    if isinstance(error, TimeoutError):
        return EmbeddingFailed(f"the embedder did not answer within {seconds:g} s", is_temporary=True)
    if isinstance(error, InvalidInput):
        return EmbeddingFailed(error.detail)
    return _provider_failure(error) if isinstance(error, ModelAPIError) else None


def _provider_failure(error: "ModelAPIError") -> EmbeddingFailed:
    """What is wrong with a hosted embedder."""
    from pydantic_ai.exceptions import ModelHTTPError, ModelQuotaExceededError

    if not isinstance(error, ModelHTTPError):
        return EmbeddingFailed("the embedder cannot be reached", is_temporary=True)
    status = error.status_code
    if isinstance(error, ModelQuotaExceededError):
        return EmbeddingFailed(f"the quota of the embedder's key is used up ({status})")
    if status in {401, 403}:
        return EmbeddingFailed(f"the embedder refuses its key ({status})")
    is_temporary = status in {408, 429} or status >= 500
    what = "is busy" if status == 429 else "is out of order" if is_temporary else "refuses the request"
    return EmbeddingFailed(f"the embedder {what} ({status})", is_temporary=is_temporary, retry_after=error.retry_after)


# --- by name ----------------------------------------------------------------------------------------------


def embedder_of(name: str, folder: Path | None = None, *, threads: int = 1) -> "EmbeddingModel | None":
    """Return what a name stands for: `none`, `local`, or a model of pydantic-ai, such as openai:text-embedding-3-small.

    `folder` has another local model, which runs in so many threads. Raises InvalidInput for an unknown name, and for a
    package, a file or a key that is missing. It imports what the embedder needs, which may take a second.
    """
    if name == NONE:
        return None
    try:
        from chatkeep.retrieval.hosted_embedder import HostedEmbedder
        from chatkeep.retrieval.local_embedder import LocalEmbedder
    except ImportError:
        raise InvalidInput('embedders need: pip install "chatkeep[documents]"') from None
    return LocalEmbedder(folder, threads=threads) if name == LOCAL else HostedEmbedder(name)


class Embedders:
    """The embedder that is configured, and those of the spaces that projects still search."""

    def __init__(self, configured: Embedder | None, folder: Path | None = None) -> None:
        """Take the embedder that makes vectors of documents, and the folder of a local model."""
        self.configured = configured
        self._folder = folder
        self._former: dict[str, Embedder | None] = {}
        self._making = asyncio.Lock()

    @classmethod
    def named(cls, name: str, folder: Path | None = None, *, threads: int = 1) -> "Embedders":
        """Take the embedder of a name. Raises InvalidInput as `embedder_of` does."""
        return cls(_embedder(name, folder, threads=threads), folder)

    async def of_space(self, space: str) -> Embedder | None:
        """Return an embedder for a space; None if this process cannot have one.

        Without a configured embedder there is none: who turned it off wants no text to leave for a former one.
        """
        if self.configured is None or self.configured.makes(space):
            return self.configured
        async with self._making:
            if space not in self._former and len(self._former) < MAX_SPACES:
                self._former[space] = await asyncio.to_thread(embedder_for_space, space, self._folder)
        return self._former.get(space)

    async def vector(self, space: str, question: str) -> bytes:
        """Return the vector of a question in a space. Raises EmbeddingFailed."""
        embedder = await self.of_space(space)
        if embedder is None:
            raise EmbeddingFailed("this server has no embedder of the space that the project searches")
        return await embedder.query(question)

    async def aclose(self) -> None:
        """Close all. Idempotent."""
        for embedder in (self.configured, *self._former.values()):
            if embedder:
                await embedder.aclose()


def embedder_for_space(space: str, folder: Path | None = None) -> Embedder | None:
    """Return an embedder whose vectors are of a space, by the name in it; None if there is none on this machine."""
    name = space.rpartition("/")[0]
    if not name:
        return None  # a hash of a name that is too long
    is_local = name.startswith(f"{LOCAL}:")
    for place in dict.fromkeys((None, folder)) if is_local else (None,):
        try:
            embedder = _embedder(LOCAL if is_local else name, place, space=space)
        except InvalidInput as error:
            logger.info("the space %s has no embedder here: %s", space, error)
            continue
        if embedder and embedder.name == name:
            return embedder
    return None


def _embedder(name: str, folder: Path | None = None, *, space: str | None = None, threads: int = 1) -> Embedder | None:
    model = embedder_of(name, folder, threads=threads)
    if model is None:
        return None
    if name == LOCAL:
        return Embedder(model, space=space, limits=LOCAL_LIMITS)
    return Embedder(model, name=name, space=space)
