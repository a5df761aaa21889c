"""What commands take for an id: a whole one, or the first characters of it, as few as are unique."""

import re
from collections.abc import Sequence
from uuid import UUID

from chatkeep.access import ApiKey
from chatkeep.cli.owners import who_there_is
from chatkeep.cli.terminal import one_line
from chatkeep.cursor import encode_cursor
from chatkeep.errors import InvalidId, InvalidInput, NotFound, NotYours
from chatkeep.ids import valid_id
from chatkeep.keys import PREFIX, parse_key
from chatkeep.model import Conversation
from chatkeep.store import Store
from chatkeep.stores.window import EVERY, list_scope

LEAST_CHARS = 4
"""Fewest characters of an id that are looked for."""

SHOWN = 10
"""Ids that an error lists at most."""

PROJECTS = 1_000
"""Projects that are looked through at most, those first that were created last."""

_START = re.compile(rf"[0-9a-f]{{{LEAST_CHARS},32}}")
HELP = f"or its first characters, {LEAST_CHARS} or more, if no other begins so"


async def conversation_of(store: Store, owner: str, given: str) -> Conversation:
    """Return the owner's conversation with an id, or the only one whose id begins so.

    Reads at most a page of the index of ids, however many conversations there are. Raises InvalidInput, NotFound.
    """
    try:
        return await store.get_conversation(owner, valid_id(given))
    except InvalidId:
        found = await _beginning(store, owner, _start(given))
    except (NotFound, NotYours):
        found = []
    if not found:
        raise NotFound(f"{owner} has no conversation {given}{await who_there_is(store, owner)}")
    return _only(found, given, [f"{each.id}  {one_line(each.title or '(no title)')}" for each in found])


async def _beginning(store: Store, owner: str, start: str) -> Sequence[Conversation]:
    """Some of the owner's conversations whose ids begin with these hexadecimal digits, by id."""
    first = int(start.ljust(32, "0"), 16)
    before = UUID(int=first - 1).hex if first else None
    cursor = before and encode_cursor("conversations", list_scope(owner, EVERY, "id"), before)
    page = await store.list_conversations(owner, order="id", limit=SHOWN + 1, cursor=cursor)
    return [each for each in page.items if each.id.hex.startswith(start)]


async def project_of(store: Store, owner: str, given: str) -> UUID:
    """Return the id of the owner's project with this id or name, or the only one whose id begins so.

    Raises InvalidInput, NotFound.
    """
    try:
        return valid_id(given)
    except InvalidId:
        page = await store.projects.list_projects(owner, limit=PROJECTS)
    start = given.lower().replace("-", "")
    named = [each for each in page.items if each.name == given]
    found = named or [each for each in page.items if _START.fullmatch(start) and each.id.hex.startswith(start)]
    if not found:
        among = f" among the {PROJECTS:,} newest" if page.next else ""
        raise NotFound(f"{owner} has no project {given}{among}; give its name, its id, {HELP}")
    return _only(found, given, [f"{each.id}  {one_line(each.name)}" for each in found]).id


async def key_of(store: Store, given: str) -> ApiKey:
    """Return the API key with an id, or the only one whose id or text begins so. Raises InvalidInput, NotFound."""
    start = parse_key(given)[0] if given.startswith(PREFIX) else given.lower()
    if (whole := await store.access.find_key(start)) is not None:
        return whole[0]
    found = [key for key in await store.access.list_keys() if key.id.startswith(_start(start))]
    if not found:
        raise NotFound("there is no API key with this id; `chatkeep keys list` shows them", got=start)
    return _only(found, start, [f"{key.id}  {one_line(f'{key.name} of {key.owner_id}')}" for key in found])


def _start(given: str) -> str:
    start = given.lower().replace("-", "")
    if not _START.fullmatch(start):
        raise InvalidInput(f"an id consists of digits and the letters a to f; give it whole, {HELP}", got=given)
    return start


def _only[Item](found: Sequence[Item], given: str, told: Sequence[str]) -> Item:
    if len(found) == 1:
        return found[0]
    candidates = [*told[:SHOWN], "…"] if len(found) > SHOWN else told
    raise InvalidInput("\n  ".join([f"several ids begin with {given}; give more of it:", *candidates]))
