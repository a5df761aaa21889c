"""Files that are uploaded: every form of them, what they may cost, and that nothing is left of those that end early."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from test_connections import Wire, connected
from test_server import served as served_process

from chatkeep import open_store
from chatkeep.api import protocol, uploads
from chatkeep.api.errors import Refused
from chatkeep.api.uploads import FORM_BYTES, Uploads
from servers.api import Api, assert_problem, serving
from servers.others import AUTH, Others, bearer

BOUNDARY = "zq7boundary"
TYPE = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
MIB = 1 << 20


@asynccontextmanager
async def served(**settings: Any) -> AsyncIterator[tuple[Api, str]]:
    """A server, and the path to which files of a project of its only owner, or of ada, are sent."""
    async with open_store("memory://") as store, serving(store, **settings) as api:
        yield api, await documents_of(api, "ada")


async def documents_of(api: Api, owner: str) -> str:
    """The path of the documents of a new project."""
    made = await api.client.post("/api/projects", json={"name": "Tea"}, headers=bearer(owner))
    return f"{made.headers['location']}/documents"


def part(name: str | None, content: bytes, *headers: str, filename: str | None = None) -> bytes:
    """A part of a form."""
    shown = "".join(
        f'; {key}="{value}"' for key, value in (("name", name), ("filename", filename)) if value is not None
    )
    lines = [f"Content-Disposition: form-data{shown}", *headers]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + content


def form(*parts: bytes, boundary: str = BOUNDARY, end: str = "--\r\n") -> bytes:
    """A form of these parts."""
    line = f"--{boundary}".encode()
    return b"".join(line + b"\r\n" + each + b"\r\n" for each in parts) + line + end.encode()


FILE = part("file", b"Green tea", filename="green.md")
BEGUN = form(FILE)[:-20] + b"a" * 100_000
"""A form that goes on."""


def files_of(api: Api) -> list[Path]:
    """What is on the disk."""
    receiver: Uploads = api.app.state.uploads
    return [] if receiver._folder is None else [*receiver._folder.iterdir()]


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


# --- forms --------------------------------------------------------------------------------------------------

TAKEN: dict[str, tuple[bytes, str]] = {
    "the name of the file": (form(FILE), "green.md"),
    "a path": (form(FILE, part("file_path", b"tea/green.md")), "tea/green.md"),
    "a path before the file": (form(part("file_path", b"tea/green.md"), FILE), "tea/green.md"),
    "a path in another form of Unicode": (form(FILE, part("file_path", "e\u0301.md".encode())), "\u00e9.md"),
    "a file without a name": (form(part("file", b"Green tea"), part("file_path", b"a.md")), "a.md"),
    "a name with folders": (form(part("file", b"Green tea", filename="C:\\x\\green.md")), "green.md"),
    "another name with folders": (form(part("file", b"Green tea", filename="../../etc/green.md")), "green.md"),
    "a name in UTF-8": (form(part("file", b"Green tea", filename="\u8336.md")), "\u8336.md"),
    "more headers": (form(part("file", b"Green tea", "Content-Type: text/x", "X-A: b", filename="a.md")), "a.md"),
    "line ends before, words after": (b"\r\n" + form(FILE) + b"afterwards", "green.md"),
    "blanks behind a boundary": (
        form(FILE, end="  \r\n") + part("file_path", b"x") + f"\r\n--{BOUNDARY}--".encode(),
        "x",
    ),
}


async def test_forms_that_are_taken() -> None:
    """Every form with one file is taken, and its path is the given one or the file's name without folders."""
    async with served() as (api, path):
        for name, (body, file_path) in TAKEN.items():
            reply = await api.client.post(path, content=body, headers=TYPE)
            assert reply.status_code in (200, 201), (name, reply.text)
            assert (reply.json()["file_path"], reply.json()["bytes"]) == (file_path, 9), name


REFUSED: dict[str, bytes] = {
    "nothing": b"",
    "no part": form(),
    "no file": form(part("file_path", b"a.md")),
    "two files": form(FILE, FILE),
    "two paths": form(part("file_path", b"a.md"), part("file_path", b"a.md"), FILE),
    "an unknown field": form(FILE, part("zq7title", b"Tea")),
    "a field without a name": form(FILE, part(None, b"Tea")),
    "a part without a header": form(b"\r\nTea"),
    "an attachment": form(b'Content-Disposition: attachment; name="file"; filename="a.md"\r\n\r\nTea'),
    "a file without any name": form(part("file", b"Tea")),
    "an empty path": form(FILE, part("file_path", b"")),
    "a path out of the project": form(FILE, part("file_path", b"../zq7.md")),
    "an absolute path": form(FILE, part("file_path", b"/zq7.md")),
    "a path with NUL": form(FILE, part("file_path", b"zq7\0.md")),
    "a path that is not UTF-8": form(FILE, part("file_path", b"zq7\xff.md")),
    "a long path": form(FILE, part("file_path", b"z" * 1_025)),
    "a very long path": form(FILE, part("file_path", b"z" * MIB)),
    "a path of marks": form(FILE, part("file_path", f"a{'\u0301' * 2_000}{'\u0327' * 2_000}".encode())),
    "no last boundary": form(FILE)[: -len(BOUNDARY) - 6],
    "cut off in the file": form(FILE)[:100],
    "cut off in a header": form(FILE)[:30],
    "another boundary": form(FILE, boundary="other"),
    "words before it": b"before" + form(FILE),
    "bare line feeds": form(FILE).replace(b"\r\n", b"\n"),
    "a header with NUL": form(part("file", b"Tea", "X\0: a", filename="a.md")),
    "a header without a name": form(part("file", b"Tea", ": a", filename="a.md")),
    "many headers": form(part("file", b"Tea", *["X: a"] * 9, filename="a.md")),
    "a long header": form(part("file", b"Tea", f"X: {'a' * 9_000}", filename="a.md")),
    "a header that never ends": form(part("file", b"Tea", filename="a" * MIB)),
    "a header's name that never ends": form(b"A" * MIB),
    "blank headers": form(part("file", b"Tea", f"X:{' ' * MIB}a", filename="a.md")),
    "a million parts": form(*[FILE] * 10_000),
    "a million boundaries": f"--{BOUNDARY}\r\n".encode() * 100_000,
    "the boundary in the file": form(part("file", f"\r\n--{BOUNDARY}x".encode() * 50_000, filename="a.md")),
    "blanks behind the boundary": form(FILE)[:-4] + b" " * MIB,
}


async def test_forms_that_are_refused() -> None:
    """Every other form is 422, which repeats nothing of it, and nothing of it is left."""
    async with served() as (api, path):
        for body in REFUSED.values():
            assert_problem(await api.client.post(path, content=body, headers=TYPE), 422, "zq7")
        await until(lambda: not files_of(api))
        assert (await api.client.get(path)).json()["items"] == []


TRICKS: dict[str, bytes] = {
    "short boundaries": form(part("file", b"\r\n--zq7x" * (2 * MIB), filename="a.md"), boundary="zq7"),
    "blanks behind a boundary": form(FILE, boundary="zq7")[:-4] + b" " * (20 * MIB),
    "line ends": form(part("file", b"\r\n" * (10 * MIB), filename="a.md"), boundary="zq7"),
    "line ends before": b"\r\n" * (10 * MIB),
    "pieces of the boundary": form(part("file", b"\r\n--zq" * (3 * MIB), filename="a.md"), boundary="zq7"),
}


@pytest.mark.parametrize("name", TRICKS)
async def test_no_trick_takes_time(name: str) -> None:
    """20 MB take some hundredths of a second of CPU, whatever they are made of. The parser alone takes seconds."""
    receiver, body = Uploads(20 * MIB), TRICKS[name]
    taken, began = uploads._Form(b"zq7", receiver._new_file, 20 * MIB), time.process_time()
    with suppress(Refused):
        for start in range(0, len(body), uploads.WRITE_BYTES):
            taken.feed(body[start : start + uploads.WRITE_BYTES])
    assert time.process_time() - began < 0.5
    taken.discard()
    await receiver.aclose()


async def test_types_that_are_refused() -> None:
    """What is no multipart/form-data with a boundary, or is compressed, is 415 before a byte of it is read."""
    async with served() as (api, path):
        long = f"multipart/form-data; boundary={'a' * 71}"
        many = f"multipart/form-data; {'a=1;' * 10_000} boundary=a"
        types = (
            "",
            "application/json",
            "text/markdown",
            "multipart/mixed; boundary=a",
            "multipart/form-data",
            long,
            many,
        )
        for type_ in (*types, "multipart/form-data; boundary="):
            assert_problem(await api.client.post(path, content=form(FILE), headers={"Content-Type": type_}), 415)
        compressed = {**TYPE, "Content-Encoding": "gzip"}
        assert_problem(await api.client.post(path, content=form(FILE), headers=compressed), 415)
        for method in ("PUT", "PATCH"):
            assert_problem(await api.client.request(method, path, content=b"Tea", headers=TYPE), 405)


async def test_the_order_of_the_checks() -> None:
    """401, 413, 415, 422, 404, 409: of a request with several faults the first one is told."""
    async with served(max_upload_bytes=1_000, max_documents=1, **AUTH) as (api, path):
        owner, unknown = bearer("ada"), f"/api/projects/{uuid4()}/documents"
        large, json = b"x" * (FORM_BYTES + 1_001), {"Content-Type": "application/json"}
        bad, good = form(part("file", b"Tea", filename="..")), form(FILE)
        cases = [
            (401, unknown, large, json),
            (413, unknown, large, {**owner, **json}),
            (415, "/api/projects/x/documents", b"", {**owner, **json}),
            (422, "/api/projects/x/documents", good, {**owner, **TYPE}),
            (422, unknown, bad, {**owner, **TYPE}),
            (404, unknown, good, {**owner, **TYPE}),
            (201, path, good, {**owner, **TYPE}),
            (409, path, form(part("file", b"Tea", filename="b")), {**owner, **TYPE}),
        ]
        for status, where, body, headers in cases:
            reply = await api.client.post(where, content=body, headers=headers)
            assert reply.status_code == status, reply.text


async def test_any_parts_of_any_file() -> None:
    """However a form is cut on its way, the file on the disk is what was sent, also with pieces of a boundary."""
    dice, receiver = random.Random(5), Uploads(MIB)
    pieces = [b"\r\n--zq7", b"\r", b"\n", b"--zq7boundar", b"\r\n", b"tea\0\xff", bytes(range(256)), b"-"]
    try:
        for _ in range(60):
            content = b"".join(dice.choices(pieces, k=dice.randrange(40)))
            body = form(part("file", content, filename="a.md"), part("file_path", b"b.md"))
            taken = uploads._Form(BOUNDARY.encode(), receiver._new_file, MIB)
            while body:
                size = dice.choice([1, 2, 7, 50, 10_000])
                taken.feed(body[:size])
                body = body[size:]
            upload = taken.received()
            assert (upload.file.read_bytes(), upload.file_path) == (content, "b.md")
            taken.discard()
            assert not upload.file.exists()
    finally:
        await receiver.aclose()


# --- limits -------------------------------------------------------------------------------------------------


async def test_a_file_has_a_largest_size() -> None:
    """A file of the size is taken; one byte more is 413, and so is a longer form before its body is sent."""
    async with served(max_upload_bytes=1_000) as (api, path):
        reply = await api.client.post(path, content=form(part("file", b"a" * 1_000, filename="a.md")), headers=TYPE)
        assert (reply.status_code, reply.json()["bytes"]) == (201, 1_000)
        larger = form(part("file", b"a" * 1_001, filename="a.md"))
        problem = assert_problem(await api.client.post(path, content=larger, headers=TYPE), 413)
        assert "at most 1,000 bytes" in problem["detail"]

        async with connected(api) as wire:
            chunk = form(FILE)[:-20] + b"a" * 1_000
            await wire.send(head(path, None, "Transfer-Encoding: chunked") + b"%x\r\n%b\r\n" % (len(chunk), chunk))
            await asyncio.sleep(0.1)
            await wire.send(b"%x\r\n" % FORM_BYTES + b"a" * FORM_BYTES + b"\r\n")
            await wire.problem(413)
        async with connected(api) as wire:
            await wire.send(head(path, FORM_BYTES + 1_001, "Expect: 100-continue"))
            await wire.problem(413)
        await until(lambda: not files_of(api))


def head(path: str, size: int | None, *headers: str) -> bytes:
    """The head of an upload."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {TYPE['Content-Type']}", *headers]
    length = [] if size is None else [f"Content-Length: {size}"]
    return "".join(f"{line}\r\n" for line in (*lines, *length, "")).encode()


async def test_uploads_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One owner has two at a time, a process some more: beyond that 429 and 503 at once, and later there is room."""
    monkeypatch.setattr(uploads, "MAX_UPLOADS", 3)
    async with served(**AUTH) as (api, _):
        paths = {owner: await documents_of(api, owner) for owner in ("ada", "bob", "eve")}

        async def begin(wire: Wire, owner: str, body: bytes = form(FILE)[:-20], size: int = 1_000) -> None:
            await wire.send(head(paths[owner], size, *map(": ".join, bearer(owner).items())) + body)

        async with connected(api) as one, connected(api) as two, connected(api) as three, connected(api) as more:
            for wire, owner in ((one, "ada"), (two, "ada"), (three, "bob")):
                await begin(wire, owner)
            await until(lambda: api.app.state.uploads._held.total() == 3)
            for owner, status in (("ada", 429), ("eve", 503)):
                async with connected(api) as refused:
                    await begin(refused, owner)
                    assert (await refused.problem(status))["retry-after"] == "1"
            one.writer.transport.abort()
            await until(lambda: api.app.state.uploads._held.total() == 2)
            await begin(more, "eve", form(FILE), len(form(FILE)))
            assert (await more.answer())[0] == 201
        await until(lambda: not api.app.state.uploads._held)
        await until(lambda: not files_of(api))


async def test_a_client_that_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that does not arrive in its time is 408, one that is cut off nothing, and nothing of them is left."""
    monkeypatch.setattr(protocol, "CHECK_SECONDS", 0.05)
    async with served(body_seconds=0.3) as (api, path):
        async with connected(api) as wire:
            await wire.send(head(path, 200_000) + BEGUN)
            await until(lambda: len(files_of(api)) == 1)
            await wire.refusal(408)
        async with connected(api) as wire:
            await wire.send(head(path, 200_000) + BEGUN)
            await until(lambda: len(files_of(api)) == 1)
        await until(lambda: not files_of(api))
        assert (await api.client.get(path)).json()["items"] == []


async def test_nothing_is_left_at_the_end() -> None:
    """A server that ends while a file arrives leaves nothing of it; until then only its user can look."""
    async with AsyncExitStack() as clients:
        async with served(shutdown_seconds=1) as (api, path):
            wire = await clients.enter_async_context(connected(api))
            await wire.send(head(path, 200_000) + BEGUN)
            await until(lambda: len(files_of(api)) == 1)
            folder = api.app.state.uploads._folder
            assert folder.stat().st_mode & 0o777 == 0o700
        await wire.problem(503)
    assert not folder.exists()


async def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file that cannot be written is 503, and the reply says nothing of where that was."""
    (tmp_path / "zq7").write_text("")
    monkeypatch.setattr("tempfile.mkdtemp", lambda prefix: str(tmp_path / "zq7"))
    async with served() as (api, path):
        reply = await api.client.post(path, content=form(FILE), headers=TYPE)
        assert_problem(reply, 503, "zq7")
        assert reply.headers["retry-after"] == "1"


def test_large_files_take_no_memory(tmp_path: Path) -> None:
    """20 MB of which the last byte does not come cost a server little memory, and others do not wait."""
    with served_process(tmp_path, **AUTH) as (process, client):
        client.headers.update(bearer("ada"))
        client.timeout = 60
        path = f"{client.post('/api/projects', json={'name': 'Tea'}).headers['location']}/documents"
        body = form(part("file", b"tea and " * (5 * MIB // 2), filename="a.md"))[:-6]
        with Others(str(client.base_url), process.pid) as others:
            for _ in range(2):
                assert_problem(client.post(path, content=body, headers=TYPE), 422)
        print(
            f"{others.grown / MIB:.1f} MiB more, {others.cpu:.2f} s of CPU, others waited {others.worst * 1e3:.0f} ms"
        )
        assert others.grown < 8 * MIB
        assert others.worst < 1
    assert "Traceback" not in (tmp_path / "log").read_text()


async def test_uploads_are_logged_by_their_route(caplog: pytest.LogCaptureFixture) -> None:
    """The route of an upload, in logs and metrics, is the whole of it."""
    caplog.set_level("INFO", "chatkeep.requests")
    async with served() as (api, path):
        await api.client.post(path, files={"file": ("a.md", "# Tea")})
    routes = {
        record.__dict__["chatkeep_fields"]["route"] for record in caplog.records if "chatkeep_fields" in record.__dict__
    }
    assert "/api/projects/{project_id}/documents" in routes
