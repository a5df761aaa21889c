"""The LLM providers of the installation over HTTP: all see them, an admin changes them."""

from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Body, Path, Request, Response
from pydantic import Field

from chatkeep.api.body import MERGE_PATCH, JsonRoute, reply
from chatkeep.api.dependencies import Admin, OpenedStore, Owner, ShowsConfig
from chatkeep.api.errors import api_problems
from chatkeep.api.examples import PROVIDER_ID
from chatkeep.api.idempotency import IdempotencyKey, execute_once, id_of_key
from chatkeep.api.query import openapi_query, read_query
from chatkeep.errors import NotFound
from chatkeep.model import Given, Page
from chatkeep.providers import ApiConfig, LlmProvider, LlmProviderChange, NewLlmProvider
from chatkeep.store import Store

router = APIRouter(prefix="/api/llm-providers", tags=["llm-providers"], route_class=JsonRoute)

ProviderId = Annotated[UUID, Path(description="The provider's id.", examples=[PROVIDER_ID])]


class ShownProvider(LlmProvider):
    """A provider, as it is shown to who asks."""

    api_config: ApiConfig | None = Field(  # type: ignore[assignment]
        description="How it is reached, and what its model is told; null for those without the scope chatkeep:admin."
    )


class ReplacementQuery(Given):
    """What follows a provider that is removed."""

    replacement: UUID | None = Field(
        default=None,
        description="The provider that becomes the default if this one is it, and that conversations name instead.",
    )


@router.get(
    "",
    response_model=Page[ShownProvider],
    responses=api_problems(),
    response_description="All providers, on one page.",
    summary="List the providers",
)
async def list_providers(_owner: Owner, shows_config: ShowsConfig, store: OpenedStore) -> Response:
    """List all providers, at most 100, those first that were created first; `next` is null.

    Exactly one is the default, which answers the conversations that name none. Who has not the scope `chatkeep:admin`
    sees no `api_config`.
    """
    found = [_shown(each, shows_config=shows_config) for each in await store.providers.list_providers()]
    return reply(Page[ShownProvider].model_construct(items=found, total=None, next=None))


@router.get(
    "/{provider_id}",
    response_model=ShownProvider,
    responses=api_problems(404, 422),
    response_description="The provider.",
    summary="Get a provider",
)
async def get_provider(
    _owner: Owner, shows_config: ShowsConfig, store: OpenedStore, provider_id: ProviderId
) -> Response:
    """Get a provider. Who has not the scope `chatkeep:admin` sees no `api_config`."""
    return reply(_shown(await store.providers.get_provider(provider_id), shows_config=shows_config))


@router.post(
    "",
    status_code=201,
    response_model=ShownProvider,
    responses=api_problems(404, 409, 413, 415, 422),
    response_description="The provider.",
    summary="Create a provider",
)
async def create_provider(
    admin: Admin,
    store: OpenedStore,
    request: Request,
    new: Annotated[NewLlmProvider, Body()],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Create a provider; with `is_default` it becomes the default instead of the one there is. Needs `chatkeep:admin`.

    `api_config` never holds a key: it names the environment variable of the server that has it. Sending the same id
    with the same values again changes nothing and returns the provider as it is now; the same id with other values is
    a conflict (409). With an `Idempotency-Key` the same holds for 24 hours without an id, and later responses have
    `Idempotency-Replayed: true`, or are 404 if the provider was deleted meanwhile.
    """
    if idempotency_key is not None and new.id is None:
        new = new.model_copy(update={"id": id_of_key(admin, idempotency_key)})
    create, show = partial(_create, store, new), partial(_show, store, new)
    return await execute_once(store.access, admin, idempotency_key, request, create, show=show)


async def _create(store: Store, new: NewLlmProvider) -> Response:
    return _created(await store.providers.create_provider(new))


async def _show(store: Store, new: NewLlmProvider) -> Response:
    return _created(await store.providers.get_provider(new.id or ""))


def _created(provider: LlmProvider) -> Response:
    return reply(provider, 201, location=f"{router.prefix}/{provider.id}")


@router.patch(
    "/{provider_id}",
    response_model=ShownProvider,
    responses=api_problems(404, 409, 413, 415, 422),
    response_description="The changed provider.",
    summary="Change a provider",
)
async def update_provider(
    _admin: Admin,
    store: OpenedStore,
    provider_id: ProviderId,
    change: Annotated[LlmProviderChange, Body(media_type=MERGE_PATCH)],
) -> Response:
    """Change a provider; omitted fields keep their value, and `api_config` is replaced whole. Needs `chatkeep:admin`.

    With `is_default` it becomes the default; that of the default cannot be taken away (409): make another provider the
    default.
    """
    return reply(await store.providers.update_provider(provider_id, change))


@router.delete(
    "/{provider_id}",
    status_code=204,
    responses=api_problems(404, 409, 422),
    response_description="The provider is deleted.",
    summary="Delete a provider",
    openapi_extra=openapi_query(ReplacementQuery),
)
async def delete_provider(_admin: Admin, store: OpenedStore, request: Request, provider_id: ProviderId) -> Response:
    """Delete a provider. Needs `chatkeep:admin`. Deleting it again is 404.

    The default, or one that conversations name, needs a `replacement` (409 without one), which becomes the default and
    answers these conversations from then on. A `replacement` that does not exist is 404.
    """
    replacement = read_query(ReplacementQuery, request).replacement
    if not await store.providers.delete_provider(provider_id, replacement=replacement):
        raise NotFound("there is no such provider")
    return Response(status_code=204)


def _shown(provider: LlmProvider, *, shows_config: bool) -> ShownProvider:
    values = dict(provider)
    return ShownProvider.model_construct(**values | ({} if shows_config else {"api_config": None}))
