"""Full-text search over HTTP."""

from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import Field

from chatkeep.api.body import reply
from chatkeep.api.dependencies import OpenedStore, Owner
from chatkeep.api.errors import api_problems
from chatkeep.api.paging import Cursor, Limit
from chatkeep.api.query import openapi_query, read_query
from chatkeep.model import Given, Page, SearchHit
from chatkeep.words import MAX_QUERY_CHARS

router = APIRouter(prefix="/api/search", tags=["search"])


class SearchQuery(Given):
    """The words and the page of a search."""

    q: str = Field(
        max_length=MAX_QUERY_CHARS,
        description="The words; a message must hold all of them, and none that has a minus.",
        examples=['"green tea" -mint'],
    )
    conversation_id: UUID | None = Field(default=None, description="Search this conversation only.")
    limit: Limit = 20
    cursor: Cursor = None


@router.get(
    "",
    response_model=Page[SearchHit],
    responses=api_problems(403, 404, 422),
    response_description="A page of search hits.",
    summary="Search all messages",
    openapi_extra=openapi_query(SearchQuery),
)
async def search_messages(owner: Owner, store: OpenedStore, request: Request) -> Response:
    """Find the messages that hold every word, the last created_at first, in all conversations or in one.

    Words in double quotes must be adjacent, in this order. A minus before a word or a quote excludes it.
    Case, accents, vowel signs of Arabic and Hebrew, invisible characters and Unicode forms do not matter. In scripts
    that are written without spaces any part of a sentence is found.
    """
    query = read_query(SearchQuery, request)
    found = await store.search_messages(
        owner, query.q, conversation_id=query.conversation_id, limit=query.limit, cursor=query.cursor
    )
    return reply(found)
