"""Writers over HTTP that note what was acknowledged. Each has conversations of its own and sends one request at a time.

They append, branch, edit, move heads, delete messages and conversations, set and remove titles and metadata, and send
again what they sent before.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from uuid import UUID, uuid4

import httpx2

from benchmarks.drill_ledger import Append, Change, Create, Delete, Effect, Erase, Trail
from chatkeep import Message, Role

CONVERSATIONS = 8
"""Most conversations of one writer: a new one beyond that is preceded by the end of another."""

PAUSE_SECONDS = 0.03
"""Mean pause of a writer, so that exports and imports have their share of the machine."""

RETRY_SECONDS = 0.05
REQUEST_SECONDS = 60.0
"""Longest time until a request is acknowledged, with all its retries."""

WORDS = ["drill", "tea", "kettle", "cup", "文件", "Straße", "naïve", "😀", "water", "leaves", "steep", "pour"]


class Writer:
    """One writer, whose trails are in the ledger as soon as they begin."""

    def __init__(self, client: httpx2.AsyncClient, owner: str, ledger: list[Trail], *, token: str) -> None:
        self._client = client
        self._owner = owner
        self._ledger = ledger
        self._headers = {"Authorization": f"Bearer {token}"}
        self._open: list[Trail] = []
        self._random = random.Random()

    def adopt(self, trail: Trail) -> None:
        """Take a conversation that exists."""
        self._open.insert(0, trail)

    async def run(self) -> None:
        """Write until cancelled. Raises RuntimeError for an answer that is neither a success nor retryable."""
        while True:
            await self.step()
            await asyncio.sleep(self._random.expovariate(1 / PAUSE_SECONDS))

    async def step(self) -> None:
        """Send one request."""
        if not self._open:
            await self.create()
        trail = self._random.choice(self._open)
        (action,) = self._random.choices(list(ACTIONS), list(ACTIONS.values()))
        await action(self, trail)

    # --- actions --------------------------------------------------------------------------------------------------

    async def append(self, trail: Trail) -> None:
        """Append after the head."""
        await self._say(trail)

    async def branch(self, trail: Trail) -> None:
        """Append after any message, or at the root."""
        parents = [None, *self._random.sample(list(trail.state.parents), min(3, len(trail.state.parents)))]
        await self._say(trail, parent_id=_text(self._random.choice(parents)))

    async def edit(self, trail: Trail) -> None:
        """Say a message of the thread anew: after the same parent."""
        if path := trail.state.path():
            await self._say(trail, parent_id=_text(trail.state.parents[self._random.choice(path)]))

    async def move_head(self, trail: Trail) -> None:
        """Move the head to any message that is not deleted, or to none."""
        heads = [None, *self._random.sample(list(trail.state.contents), min(5, len(trail.state.contents)))]
        await self._change(trail, head_id=_text(self._random.choice(heads)))

    async def set_title(self, trail: Trail) -> None:
        """Set or remove the title."""
        await self._change(trail, title=self._random.choice([None, f"Title {self._random.random()}"]))

    async def set_metadata(self, trail: Trail) -> None:
        """Set or remove a key of the metadata."""
        key = self._random.choice("abc")
        await self._change(trail, metadata={key: self._random.choice([None, self._random.random()])})

    async def erase(self, trail: Trail) -> None:
        """Delete a message."""
        if trail.state.contents:
            id_ = self._random.choice(list(trail.state.contents))
            await self._send(trail, Erase(id_), "DELETE", f"/messages/{id_}")

    async def retry(self, trail: Trail) -> None:
        """Send a message again."""
        sent = [request.effect for request in trail.requests if isinstance(request.effect, Append)]
        if sent:
            await self._send_message(trail, self._random.choice(sent))

    async def create(self, _: Trail | None = None) -> None:
        """Create a conversation; at the most that a writer has, delete another one first."""
        if len(self._open) >= CONVERSATIONS:
            await self.end(self._random.choice(self._open))
        new = Trail(self._owner, uuid4())
        self._ledger.append(new)
        effect = Create(self._random.choice([None, "Given title"]), {"made": self._random.random()})
        body = {"id": str(new.id), "title": effect.title, "metadata": effect.metadata}
        await self._send(new, effect, "POST", None, body)
        self._open.append(new)

    async def end(self, trail: Trail) -> None:
        """Delete a conversation."""
        if not trail.lasting:
            self._open.remove(trail)
            await self._send(trail, Delete(), "DELETE", "")

    # --- requests -------------------------------------------------------------------------------------------------

    async def _say(self, trail: Trail, **values: Any) -> None:
        await self._send_message(trail, Append({**message(self._random), **values}))

    async def _send_message(self, trail: Trail, effect: Append) -> None:
        reply = await self._send(trail, effect, "POST", "/messages", effect.body)
        if effect.id in trail.state.contents:
            trail.messages[effect.id] = Message.model_validate(reply.json())

    async def _change(self, trail: Trail, **patch: Any) -> None:
        await self._send(trail, Change(patch), "PATCH", "", patch)

    async def _send(
        self, trail: Trail, effect: Effect, method: str, path: str | None, body: dict[str, Any] | None = None
    ) -> httpx2.Response:
        """Send a request until it is acknowledged. What is deleted already was deleted by an earlier attempt."""
        url = "/api/conversations" + ("" if path is None else f"/{trail.id}{path}")
        request = trail.begin(effect, time.monotonic())
        async with asyncio.timeout(REQUEST_SECONDS):
            while True:
                reply = await self._reply(method, url, body)
                if reply is not None:
                    trail.acknowledge(request, time.monotonic())
                    return reply
                await asyncio.sleep(RETRY_SECONDS)

    async def _reply(self, method: str, url: str, body: dict[str, Any] | None) -> httpx2.Response | None:
        """Send a request once, and return the reply if it is a success. Raises RuntimeError if it is a refusal."""
        try:
            reply = await self._client.request(method, url, json=body, headers=self._headers)
        except httpx2.TransportError:  # an idle connection that the server has closed, for example
            return None
        if reply.is_success or (method == "DELETE" and reply.status_code == 404):
            return reply
        if reply.status_code not in {429, 503}:
            raise RuntimeError(f"{method} {url}: {reply.status_code} {reply.text}")
        return None


ACTIONS: Mapping[Callable[[Writer, Trail], Awaitable[None]], int] = {
    Writer.append: 45,
    Writer.branch: 10,
    Writer.edit: 8,
    Writer.move_head: 8,
    Writer.erase: 8,
    Writer.retry: 6,
    Writer.set_title: 4,
    Writer.set_metadata: 4,
    Writer.create: 2,
    Writer.end: 1,
}
"""What a writer does, and how often in relation to the others."""


def message(chance: random.Random) -> dict[str, Any]:
    """The body of a new message, now and then with every field."""
    role = chance.choice([Role.USER, Role.ASSISTANT])
    body: dict[str, Any] = {"id": str(uuid4()), "role": role, "content": " ".join(chance.choices(WORDS, k=12))}
    if chance.random() < 0.1:
        source = {"document_id": str(uuid4()), "file_path": "a.md", "similarity_score": 0.25}
        body |= {"metadata": {"n": chance.random()}, "sources": [source], "sent_at": "2026-01-02T03:04:05.678901Z"}
    if chance.random() < 0.05:
        body |= {"status": "interrupted", "external_id": f"call-{body['id']}"}
    return body


def _text(id_: UUID | None) -> str | None:
    return None if id_ is None else str(id_)
