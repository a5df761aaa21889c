"""How the server ends: streams that wait for something to happen end with it, what is under way is finished."""

import asyncio
from collections.abc import AsyncIterator

import httpx2
from fastapi import Request
from fastapi.responses import StreamingResponse

from chatkeep import open_store
from chatkeep.api.app import create_app
from chatkeep.api.server import HttpServer
from chatkeep.settings import Settings


async def test_ten_idle_streams_end() -> None:
    """They end well within the time that uvicorn would wait; a slow request is answered; a new one is refused."""
    async with open_store("memory://") as store:
        settings = Settings(port=0)
        app = create_app(store, settings)

        @app.get("/stream")
        async def stream() -> StreamingResponse:
            async def events() -> AsyncIterator[str]:
                yield "data: 1\n\n"
                await asyncio.sleep(3_600)

            return StreamingResponse(events(), media_type="text/event-stream")

        @app.get("/slow")
        async def slow(_: Request) -> dict[str, str]:
            await asyncio.sleep(1)
            return {"done": "yes"}

        server = HttpServer(settings, app)
        running = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        async with httpx2.AsyncClient(base_url=url, timeout=10) as client:
            opened = asyncio.Semaphore(0)

            async def listen() -> str:
                text = ""
                async with client.stream("GET", "/stream") as reply:
                    opened.release()
                    async for part in reply.aiter_text():
                        text += part
                return text

            listening = [asyncio.create_task(listen()) for _ in range(10)]
            for _ in listening:
                await opened.acquire()
            waiting = asyncio.create_task(client.get("/slow"))
            await asyncio.sleep(0.3)
            server.should_exit = True
            heard = await asyncio.wait_for(asyncio.gather(*listening), 2)
            assert heard == ["data: 1\n\nretry: 1000\n\n"] * 10
            assert (await waiting).json() == {"done": "yes"}
        await asyncio.wait_for(running, 3)
