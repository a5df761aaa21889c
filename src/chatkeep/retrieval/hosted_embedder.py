"""An embedder that somebody hosts: any of pydantic-ai's, by its name."""

import re
from typing import TYPE_CHECKING, Any

from pydantic_ai.embeddings import WrapperEmbeddingModel, infer_embedding_model
from pydantic_ai.exceptions import UserError
from pydantic_ai.providers import infer_provider

from chatkeep.errors import InvalidInput

if TYPE_CHECKING:
    from pydantic_ai.providers import Provider

UNKNOWN = (
    "the embedder must be none, local, or the name of one that pydantic-ai knows, such as openai:text-embedding-3-small"
)


class HostedEmbedder(WrapperEmbeddingModel):
    """A model of pydantic-ai, with its client, which can be closed and does not retry: who calls it does."""

    def __init__(self, name: str) -> None:
        """Make the model; raises InvalidInput if there is none, or a package or a key is missing."""
        self._providers: list[Provider[Any]] = []
        super().__init__(_model(name, self._providers))

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        for provider in self._providers:
            async with provider:  # a provider closes its client when the last who entered it leaves
                pass


def _model(name: str, providers: "list[Provider[Any]]") -> Any:
    """Make the model of a name, and note its provider."""

    def made(provider_name: str) -> "Provider[Any]":
        provider = infer_provider(provider_name)
        if hasattr(provider.client, "max_retries"):
            provider.client.max_retries = 0
        providers.append(provider)
        return provider

    if not name.partition(":")[2]:
        raise InvalidInput(UNKNOWN, got=name)
    try:
        return infer_embedding_model(name, provider_factory=made)
    except ImportError as error:
        extra = re.search(r"pydantic-ai-slim\[[a-z0-9,-]+\]", str(error))
        package = extra[0] if extra else "the package of its provider"
        raise InvalidInput(f'this embedder needs: pip install "{package}"', got=name) from error
    except UserError as error:
        raise InvalidInput(_lacking(str(error)), got=name) from error
    except ValueError:
        raise InvalidInput(UNKNOWN, got=name) from None


def _lacking(message: str) -> str:
    """What to set, of a message that also tells how to do so in Python."""
    settings = dict.fromkeys(re.findall(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]+\b", message))
    if not settings:
        return f"pydantic-ai cannot make this embedder: {message}"
    return f"this embedder needs a setting in the environment: {', '.join(settings)}"
