"""Servers that stand in for OpenAI and Anthropic, over HTTP on 127.0.0.1, and say what a script says.

    async with fake_openai([Answer(text=["Hel", "lo"])]) as fake:
        client = AsyncOpenAI(base_url=fake.url, api_key="sk-test")

A process of its own, for tests that kill what asks: `spawned("openai", script, folder)`, which runs
`python -m servers.models --kind openai --script FILE --log FILE` and reads in the log what was asked.
"""

import argparse
import asyncio
import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from servers import anthropic_events, openai_events
from servers.apps import app_served
from servers.model_script import Answer, Frame, Json, Request, Script
from servers.model_streams import Job, Sending, paced

Kind = Literal["openai", "anthropic"]


class Fake(ABC):
    """What the servers of all providers do."""

    def __init__(self, script: Script, log: Path | None = None) -> None:
        """Play the script; write every request into the file `log`, one a line."""
        self._script = script
        self._log = log
        self.url = ""
        """What clients take as `base_url`."""
        self.requests: list[Request] = []
        """Every request, in order."""
        self.jobs: dict[str, Job] = {}
        """OpenAI's background answers by the id of their response; those removed here have expired."""
        self.streams = 0
        """How many streams are being sent now."""

    @property
    def creates(self) -> int:
        """How many answers were begun: each costs money."""
        return sum(request.creates for request in self.requests)

    @abstractmethod
    def routes(self) -> list[Route]:
        """What it serves."""

    @abstractmethod
    def error_of(self, status: int, message: str, key: str) -> Json:
        """The body of an error."""

    @abstractmethod
    def base_url(self, port: int) -> str:
        """The URL that clients of the provider take."""

    def note(self, request: HttpRequest, body: Json | None = None, answer: Answer | None = None) -> Request:
        """Remember a request, before it gets its answer."""
        noted = replace(noted_of(request, body or {}), creates=answer is not None and answer.begins)
        self.requests.append(noted)
        if self._log:
            with self._log.open("a") as file:
                file.write(f"{json.dumps(asdict(noted))}\n")
        return noted

    async def asked(self, request: HttpRequest, answering: Callable[[Answer, str, Json], Response]) -> Response:
        """Answer a request for an answer, of which `answering` is given the part of an id that is its own."""
        body = await request.json()
        answer = self._next(noted_of(request, body))
        self.note(request, body, answer)
        name = f"{len(self.requests)}"
        await asyncio.sleep(answer.first)
        return answering(answer, name, body) if answer.begins else self._refusal(answer, request)

    def _next(self, request: Request) -> Answer:
        if callable(self._script):
            return self._script(request)
        asked = sum(each.method == "POST" and not each.path.endswith("/cancel") for each in self.requests)
        return self._script[min(asked, len(self._script) - 1)]

    def _refusal(self, answer: Answer, request: HttpRequest) -> Response:
        if answer.redirect:
            return Response(status_code=307, headers={"location": answer.redirect})
        headers = {} if answer.retry_after is None else {"retry-after": f"{answer.retry_after:g}"}
        key = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
        return JSONResponse(self.error_of(answer.status, answer.message, key), answer.status, headers)

    def sent(
        self,
        request: HttpRequest,
        answer: Answer,
        frames: Iterator[Frame] | AsyncGenerator[Frame],
        failure: Callable[[Answer, Frame | None], Frame],
        connection: int = 0,
    ) -> Response:
        """A stream of frames, without a pause if it is asynchronous: then it has its own."""
        given = frames if isinstance(frames, AsyncGenerator) else paced(frames, answer.pause)
        transport = request.scope["state"]["transport"]
        sending = Sending(answer, given, lambda last: failure(answer, last), transport, connection)
        return StreamingResponse(self._counted(sending), media_type="text/event-stream")

    async def _counted(self, sending: Sending) -> AsyncGenerator[bytes]:
        self.streams += 1
        try:
            async for data in sending.data():
                yield data
        finally:
            self.streams -= 1


def noted_of(request: HttpRequest, body: Json) -> Request:
    """What is remembered of a request."""
    return Request(request.method, request.url.path, dict(request.query_params), dict(request.headers), body)


class FakeOpenAI(Fake):
    """Responses, background ones included, Chat Completions and the list of models."""

    def routes(self) -> list[Route]:
        """Where they are."""
        return [
            Route("/v1/responses", self._responses, methods=["POST"]),
            Route("/v1/responses/{name}", self._retrieve, methods=["GET"]),
            Route("/v1/responses/{name}/cancel", self._cancel, methods=["POST"]),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/models", self._models, methods=["GET"]),
        ]

    def base_url(self, port: int) -> str:
        """With the version."""
        return f"http://127.0.0.1:{port}/v1"

    def error_of(self, status: int, message: str, key: str) -> Json:
        """As OpenAI writes it."""
        return openai_events.error_of(status, message, key)

    async def _responses(self, request: HttpRequest) -> Response:
        def answering(answer: Answer, name: str, body: Json) -> Response:
            response = openai_events.response_of(f"resp_{name}", body)
            frames = openai_events.responses_frames(answer, response)
            if body.get("background"):
                return self._begun(request, Job(answer, response), frames, body)
            if body.get("stream"):
                return self.sent(request, answer, frames, openai_events.responses_failure)
            *_, last = frames
            assert isinstance(last.data, dict)
            return JSONResponse(last.data["response"])

        return await self.asked(request, answering)

    def _begun(self, request: HttpRequest, job: Job, frames: Iterator[Frame], body: Json) -> Response:
        self.jobs[job.response["id"]] = job
        job.start(frames)
        return self._read(request, job, -1) if body.get("stream") else JSONResponse(job.response)

    def _read(self, request: HttpRequest, job: Job, after: int) -> Response:
        job.connections += 1
        failure = openai_events.responses_failure
        return self.sent(request, job.answer, job.read(after), failure, job.connections - 1)

    async def _retrieve(self, request: HttpRequest) -> Response:
        self.note(request)
        job = self.jobs.get(request.path_params["name"])
        if job is None:
            return self._unknown(request)
        if request.query_params.get("stream") != "true":
            return JSONResponse(job.response)
        return self._read(request, job, int(request.query_params.get("starting_after", -1)))

    async def _cancel(self, request: HttpRequest) -> Response:
        self.note(request)
        job = self.jobs.get(request.path_params["name"])
        if job is None:
            return self._unknown(request)
        await job.cancel()
        return JSONResponse(job.response)

    def _unknown(self, request: HttpRequest) -> Response:
        said = f"Response with id '{request.path_params['name']}' not found."
        return JSONResponse(self.error_of(404, said, ""), 404)

    async def _chat(self, request: HttpRequest) -> Response:
        def answering(answer: Answer, name: str, body: Json) -> Response:
            if not body.get("stream"):
                return JSONResponse(openai_events.completion_of(answer, f"chatcmpl-{name}", body))
            frames = openai_events.chat_frames(answer, f"chatcmpl-{name}", body)
            return self.sent(request, answer, frames, openai_events.chat_failure)

        return await self.asked(request, answering)

    async def _models(self, request: HttpRequest) -> Response:
        self.note(request)
        models = [{"id": "gpt-test", "object": "model", "created": openai_events.CREATED_AT, "owned_by": "test"}]
        return JSONResponse({"object": "list", "data": models})


class FakeAnthropic(Fake):
    """Messages."""

    def routes(self) -> list[Route]:
        """Where they are."""
        return [Route("/v1/messages", self._messages, methods=["POST"])]

    def base_url(self, port: int) -> str:
        """Without the version, which the client adds."""
        return f"http://127.0.0.1:{port}"

    def error_of(self, status: int, message: str, key: str) -> Json:
        """As Anthropic writes it."""
        return anthropic_events.error_of(status, message, key)

    async def _messages(self, request: HttpRequest) -> Response:
        def answering(answer: Answer, name: str, body: Json) -> Response:
            if not body.get("stream"):
                return JSONResponse(anthropic_events.message_of(answer, f"msg_{name}", body))
            frames = anthropic_events.message_frames(answer, f"msg_{name}", body)
            return self.sent(request, answer, frames, anthropic_events.failure)

        return await self.asked(request, answering)


KINDS: dict[Kind, type[FakeOpenAI] | type[FakeAnthropic]] = {"openai": FakeOpenAI, "anthropic": FakeAnthropic}


def fake_openai(script: Script) -> AbstractAsyncContextManager[FakeOpenAI]:
    """Serve as OpenAI in the loop of the caller, on a free port."""
    return serving(FakeOpenAI(script))


def fake_anthropic(script: Script) -> AbstractAsyncContextManager[FakeAnthropic]:
    """Serve as Anthropic in the loop of the caller, on a free port."""
    return serving(FakeAnthropic(script))


@asynccontextmanager
async def serving[F: Fake](fake: F, port: int = 0) -> AsyncIterator[F]:
    """Serve a fake, and set its URL."""
    async with app_served(Starlette(routes=fake.routes()), port) as bound:
        fake.url = fake.base_url(bound)
        try:
            yield fake
        finally:
            for job in fake.jobs.values():
                job.stop()


@dataclass
class Spawned:
    """A fake in a process of its own."""

    url: str
    process: asyncio.subprocess.Process
    log: Path

    @property
    def requests(self) -> list[Request]:
        """Every request, in order."""
        return [Request(**json.loads(line)) for line in self.log.read_text().splitlines()]

    @property
    def creates(self) -> int:
        """How many answers were begun."""
        return sum(request.creates for request in self.requests)


@asynccontextmanager
async def spawned(kind: Kind, script: list[Answer], folder: Path) -> AsyncIterator[Spawned]:
    """Serve in a process of its own, with files in `folder`, and kill it at the end."""
    log, file = folder / f"{kind}.log", folder / f"{kind}.json"
    log.touch()
    file.write_text(json.dumps([asdict(answer) for answer in script]))
    command = [sys.executable, "-m", "servers.models", "--kind", kind, "--script", str(file), "--log", str(log)]
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=here)
    try:
        assert process.stdout
        url = (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()
        assert url, "the fake did not start"
        yield Spawned(url, process, log)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def main() -> None:
    """Serve until killed, and print the URL."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", choices=list(KINDS), required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--script", type=Path, required=True, help="a JSON array of answers")
    parser.add_argument("--log", type=Path, help="gets a line of JSON for each request")
    given = parser.parse_args()
    script = [Answer.of(values) for values in json.loads(given.script.read_text())]
    async with serving(KINDS[given.kind](script, given.log), given.port) as fake:
        print(fake.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
