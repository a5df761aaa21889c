"""Clients of one or two servers of the same database, that know what each request must answer.

Each has an owner of its own, so that every list, history and search has one right answer. A request goes to one of the
servers at random: what one has acknowledged the other is asked for, and a message is sent again to either of them.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import httpx2

from benchmarks.drill_ledger import Append, Effect, Trail
from benchmarks.drill_writers import RETRY_SECONDS, Writer, message
from benchmarks.migration_read import MESSAGE

PATIENCE_SECONDS = 900.0
"""Longest time until a request is acknowledged: a migration that holds the write lock may take long."""

READ_SHARE = 0.45
RESEND_SHARE = 0.15
PAGE = 200
IDS = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")


def common(message: dict[str, Any]) -> dict[str, Any]:
    """The fields of a message, as JSON, that every version has."""
    return {name: message[name] for name in MESSAGE}


class Asked(NamedTuple):
    """A request and its answer."""

    server: str
    route: str
    status: int
    """0 if the connection was closed."""
    began: float
    seconds: float

    @property
    def is_read(self) -> bool:
        """Whether it only reads."""
        return self.route.startswith("GET")


@dataclass
class Seen:
    """What all clients saw."""

    asked: list[Asked] = field(default_factory=list)
    crossed: Counter[str] = field(default_factory=Counter)
    """How often one server was asked for what the other had acknowledged, by what was asked."""
    messages: dict[UUID, dict[str, Any]] = field(default_factory=dict)
    """Messages as they were acknowledged, with the fields that every version has."""
    wrong: list[str] = field(default_factory=list)
    """Answers that were a success, and not what they must be."""

    @property
    def failures(self) -> Counter[tuple[str, str, int]]:
        """Answers that were no success, by server, route and status."""
        return Counter((each.server, each.route, each.status) for each in self.asked if not 200 <= each.status < 300)

    def longest(self, *, reads: bool, since: float = 0.0, until: float = float("inf")) -> float:
        """The longest wait of a request that was under way between two moments."""
        return max(
            (
                each.seconds
                for each in self.asked
                if each.is_read == reads and each.began < until and each.began + each.seconds > since
            ),
            default=0.0,
        )


class Caller(Writer):
    """A client that writes, and reads what it wrote."""

    def __init__(
        self, clients: Mapping[str, httpx2.AsyncClient], owner: str, ledger: list[Trail], seen: Seen, *, token: str
    ) -> None:
        super().__init__(next(iter(clients.values())), owner, ledger, token=token)
        self._clients = clients
        self._seen = seen
        self._last: dict[UUID, str] = {}
        """The server that acknowledged the last change of each conversation."""
        self._server = ""
        self._needles: dict[str, Append] = {}
        """Messages by a word that no other one has."""

    async def step(self) -> None:
        """Send one request that writes, or one that reads."""
        if self._open and self._random.random() < READ_SHARE:
            read = self._random.choice((self.check_history, self.check_history, self.check_list, self.check_search))
            await read(self._random.choice(self._open))
        else:
            await super().step()

    # --- writing ------------------------------------------------------------------------------------------------

    async def _say(self, trail: Trail, **values: Any) -> None:
        body, needle = message(self._random), f"needle{uuid4().hex[:12]}"
        effect = Append({**body, "content": f"{body['content']} {needle}", **values})
        self._needles[needle] = effect
        await self._send_message(trail, effect)
        if self._random.random() < RESEND_SHARE:
            await self._resend(trail, effect)

    async def _resend(self, trail: Trail, effect: Append) -> None:
        """Send a message again, as a client does that has got no answer."""
        await self._send_message(trail, effect)

    async def _send_message(self, trail: Trail, effect: Append) -> None:
        known = effect.id in trail.state.parents
        reply = await self._send(trail, effect, "POST", "/messages", effect.body)
        if not known:
            self._last[trail.id] = self._server
            self._seen.messages[effect.id] = common(reply.json())
            return
        self._note("retry", trail)
        if effect.id in trail.state.contents:
            self._expect("retry", common(reply.json()), self._seen.messages[effect.id])

    async def _send(
        self, trail: Trail, effect: Effect, method: str, path: str | None, body: dict[str, Any] | None = None
    ) -> httpx2.Response:
        url = "/api/conversations" + ("" if path is None else f"/{trail.id}{path}")
        request = trail.begin(effect, time.monotonic())
        reply = await self._until_answered(method, url, body)
        trail.acknowledge(request, time.monotonic())
        if not isinstance(effect, Append):
            self._last[trail.id] = self._server
        return reply

    async def _until_answered(self, method: str, url: str, body: dict[str, Any] | None = None) -> httpx2.Response:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (reply := await self._reply(method, url, body)) is None:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(RETRY_SECONDS)
        return reply

    async def _reply(self, method: str, url: str, body: dict[str, Any] | None) -> httpx2.Response | None:
        """Ask a server, and return the reply if it is a success. All others are counted, and repeated for a while."""
        self._server = self._random.choice(list(self._clients))
        began = time.monotonic()
        try:
            reply = await self._clients[self._server].request(method, url, json=body, headers=self._headers)
        except httpx2.TransportError:
            reply = httpx2.Response(0)
        gone = method == "DELETE" and reply.status_code == 404  # an earlier attempt did it
        route = f"{method} {IDS.sub('ID', url.partition('?')[0])}"
        status = 200 if gone else reply.status_code
        self._seen.asked.append(Asked(self._server, route, status, began, time.monotonic() - began))
        if 400 <= status < 500 and status != 429:
            raise RuntimeError(f"{self._server}: {method} {url}: {status} {reply.text}")
        return reply if 200 <= status < 300 else None

    # --- reading ------------------------------------------------------------------------------------------------

    async def check_history(self, trail: Trail) -> None:
        """The newest part of a history, and one message of it, are as they were acknowledged."""
        reply = await self._until_answered("GET", f"/api/conversations/{trail.id}/messages?limit={PAGE}")
        self._note("history", trail)
        path = trail.state.path()[-PAGE:]
        known, path = self._seen.messages, trail.state.path()[-PAGE:]
        self._expect("history", list(map(common, reply.json()["items"])), [known[id_] for id_ in path])
        if path:
            id_ = self._random.choice(path)
            reply = await self._until_answered("GET", f"/api/conversations/{trail.id}/messages/{id_}")
            self._expect("message", common(reply.json()), known[id_])

    async def check_list(self, trail: Trail) -> None:
        """The list of conversations has all that are open, with their titles, metadata and heads."""
        reply = await self._until_answered("GET", f"/api/conversations?limit={PAGE}")
        self._note("list", trail)
        found = {each["id"]: (each["title"], each["metadata"], each["head_id"]) for each in reply.json()["items"]}
        wanted = {
            str(each.id): (
                each.state.title,
                each.state.metadata,
                None if each.state.head is None else str(each.state.head),
            )
            for each in self._open
        }
        self._expect("list", found, wanted)

    async def check_search(self, trail: Trail) -> None:
        """A word finds the one message that has it, unless that was deleted."""
        known = [needle for needle, effect in self._needles.items() if effect.id in trail.state.contents]
        if known:
            needle = self._random.choice(known[-50:])
            reply = await self._until_answered("GET", f"/api/search?q={needle}")
            self._note("search", trail)
            self._expect(
                "search", [hit["message"]["id"] for hit in reply.json()["items"]], [self._needles[needle].body["id"]]
            )

    def _note(self, kind: str, trail: Trail) -> None:
        """Count an answer of another server than the one that acknowledged the last change."""
        if self._last.get(trail.id) not in {None, self._server}:
            self._seen.crossed[kind] += 1

    def _expect(self, kind: str, found: object, wanted: object) -> None:
        if found != wanted:
            self._seen.wrong.append(f"{self._server}: {kind}: {str(found)[:300]} instead of {str(wanted)[:300]}")


class Browser(Caller):
    """A client that only reads what an owner has whose conversations are not its own."""

    WORDS = ("kalo", "miter", "soso", "图书")

    async def step(self) -> None:
        """Read a list, the newest part of a history, and what a search finds."""
        reply = await self._until_answered("GET", f"/api/conversations?limit={PAGE}")
        listed = reply.json()["items"]
        if listed:
            id_ = self._random.choice(listed)["id"]
            await self._until_answered("GET", f"/api/conversations/{id_}/messages?limit=50")
        await self._until_answered("GET", f"/api/search?q={self._random.choice(self.WORDS)}")


async def call(callers: Sequence[Caller], ended: asyncio.Event) -> None:
    """Let all call until the event, each to the end of a request. Raises what a server refused."""

    async def calling(caller: Caller) -> None:
        while not ended.is_set():
            await caller.step()

    async with asyncio.TaskGroup() as group:
        for caller in callers:
            group.create_task(calling(caller))
