"""A TCP proxy before a database, in a process of its own: `python -m benchmarks.proxy PORT`.

It prints its port and reads what to do from standard input: `pass` bytes on at once, `delay SECONDS` what the
database answers, or go `down`, which ends all connections and refuses new ones.
"""

import asyncio
import sys
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.children import ROOT, command
from benchmarks.cores import OTHERS, on


class Proxy:
    """What the process does."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._delay = 0.0
        self._port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[StreamWriter] = set()

    async def up(self) -> int:
        """Listen, on the port that it had before, and return it."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
            self._port = self._server.sockets[0].getsockname()[1]
        return self._port

    async def obey(self, line: str) -> None:
        """Do what a line says."""
        word, *values = line.split()
        if word == "down" and self._server is not None:
            self._server.close()
            self._server = None
            for writer in self._writers:
                writer.transport.abort()
        elif word in ("pass", "delay"):
            self._delay = float(values[0]) if values else 0.0
            await self.up()

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, back}
        try:
            await asyncio.gather(self._pump(reader, back, answers=False), self._pump(there, writer, answers=True))
        except ConnectionError:
            pass  # one of them went, and the other goes with it
        finally:
            for each in (writer, back):
                self._writers.discard(each)
                each.transport.abort()

    async def _pump(self, reader: StreamReader, writer: StreamWriter, *, answers: bool) -> None:
        while data := await reader.read(1 << 16):
            if answers and self._delay:
                await asyncio.sleep(self._delay)
            writer.write(data)
            await writer.drain()
        writer.transport.abort()


@asynccontextmanager
async def proxy(target: int) -> AsyncIterator[tuple[int, Process]]:
    """The port of a proxy before `target`, and its process, whose input says what to do."""
    line = command("benchmarks.proxy", str(target))
    with on(OTHERS):
        process = await asyncio.create_subprocess_exec(*line, stdin=PIPE, stdout=PIPE, cwd=ROOT)
    try:
        assert process.stdout
        yield int(await process.stdout.readline()), process
    finally:
        process.kill()
        await process.wait()


async def tell(process: Process, line: str) -> None:
    """Tell a proxy what to do."""
    assert process.stdin
    process.stdin.write(f"{line}\n".encode())
    await process.stdin.drain()


async def _main(target: int) -> None:
    made = Proxy(target)
    print(await made.up(), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        await made.obey(line)


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1])))
