"""Files read in child processes: of every kind, hostile ones, and children that hang, die or lie."""

import asyncio
import gzip
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from samples import docx, pdf, zipped

from chatkeep.documents import MAX_CHUNK_CHARS, NewChunk
from chatkeep.errors import InvalidInput
from chatkeep.reading import process as reading_process
from chatkeep.reading.chunking import chunk_markdown, chunk_text
from chatkeep.reading.converting import MAX_UNPACKED_BYTES, check_docx, convert, load_converter
from chatkeep.reading.frames import LENGTHS, MAX_FRAME_BYTES, chunk_frames, chunks_of
from chatkeep.reading.kinds import Kind, kind_of
from chatkeep.reading.readers import ReadDocument, Readers, ReadLimits
from chatkeep.reading.source import hash_of

SLOW = "* a\n" * 150_000
"""Two seconds of work, and many more on a busy machine."""

BOM = "\ufeff"


@pytest.fixture(autouse=True)
def no_child_is_left() -> Iterator[None]:
    """Fail a test after which a process that read files is still there, also as a zombie."""
    yield
    assert children() == []


@pytest.fixture
async def opened() -> AsyncIterator[Callable[..., Readers]]:
    """Makes readers, which are closed at the end."""
    made: list[Readers] = []

    def make(**limits: Any) -> Readers:
        made.append(Readers(ReadLimits(**limits)))
        return made[-1]

    yield make
    for readers in made:
        await readers.aclose()


@pytest.fixture
def readers(opened: Callable[..., Readers]) -> Readers:
    """Readers of one file at a time."""
    return opened(children=1)


def children() -> list[int]:
    """The child processes of this one that read files, or did."""
    told = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
    lines = [line.split(None, 2) for line in told.stdout.splitlines()]
    is_one = re.compile("chatkeep.reading.child|python.*defunct")
    return [int(pid) for pid, parent, args in lines if int(parent) == os.getpid() and is_one.search(args)]


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds, but not for ever."""
    for _ in range(500):
        if holds():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"not in time; the children are {children()}")


def written(folder: Path, content: bytes | str, name: str = "file") -> Path:
    """Write a file, with its line ends as they are."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def text_of(document: ReadDocument) -> str:
    """The whole text of a document."""
    return "".join(chunk.text for chunk in document.chunks)


async def test_files_are_read_as_their_names_tell(readers: Readers, tmp_path: Path) -> None:
    """Markdown and text, by one child; line ends are kept, and a byte order mark is not."""
    text = "---\ntitle: T\n---\r\n# Größe\r\n\r\ntext \U0001f680\r\n"
    kinds = {
        "a.md": "text/markdown",
        "b/c.MARKDOWN": "text/markdown",
        "d.mdx": "text/markdown",
        "e.txt": "text/plain",
        "f.rst": "text/plain",
        "g.log": "text/plain",
        "Makefile": "text/plain",
        "h.py": "text/plain",
    }
    used = set()
    for name, media_type in kinds.items():
        file = written(tmp_path, BOM + text)
        read = await readers.read(file, name)
        cut = (chunk_markdown if media_type == "text/markdown" else chunk_text)(text)
        new = read.new
        assert (new.file_path, new.media_type, new.title) == (name, media_type, cut.title)
        assert (new.bytes, new.sha256) == (len((BOM + text).encode()), hash_of(file))
        assert read.chunks == cut.chunks
        used.update(children())
    assert len(used) == 1


async def test_hashes_are_of_the_file_and_of_how_it_is_cut(
    readers: Readers, opened: Callable[..., Readers], tmp_path: Path
) -> None:
    """Another length of chunks has another hash: the file is read again then."""
    file, other = written(tmp_path, "text"), written(tmp_path, "text.", "other")
    other_readers = opened(target=100)
    assert (await other_readers.read(file, "a")).new.sha256 == hash_of(file, target=100)
    await other_readers.aclose()
    assert len({hash_of(file), hash_of(file, target=100), hash_of(other)}) == 3


REFUSED: dict[str, tuple[bytes, str]] = {
    "empty.md": (b"", "is empty"),
    "blank.txt": (b" \r\n\t\n\xc2\xa0", "is empty"),
    "nul.txt": (b"a\nb\0c", "NUL at byte 3"),
    "latin.md": ("größer".encode("latin-1"), "not UTF-8: the first wrong byte is at 2; save it as UTF-8"),
    "bom.md": (b"\xef\xbb\xbfab\xff", "the first wrong byte is at 5"),
    "cut.md": (b"a" * 1_234 + b"\xe2\x82", "the first wrong byte is at 1,234"),
    "surrogate.md": (b"ab\xed\xa0\x80", "the first wrong byte is at 2"),
    "utf16.txt": ("text".encode("utf-16"), "is UTF-16, not UTF-8"),
    "a.zip": (zipped({"a": b"b"}), "a ZIP archive; archives are not read: unpack it"),
    "a.md": (zipped({"a": b"b"}), "a ZIP archive"),
    "a.jar": (b"text", "an archive (.jar)"),
    "a.tar": (b"a" * 257 + b"ustar", "a tar archive"),
    "a.txt.gz": (gzip.compress(b"a"), "a gzip archive"),
    "b.md": (b"BZh91AY&SY", "a bzip2 archive"),
    "c.md": (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    "d.md": (b"Rar!\x1a\x07", "a RAR archive"),
    "e.md": (b"\xfd7zXZ\x00", "an xz archive"),
    "a.xlsx": (zipped({"xl/workbook.xml": b""}), "an Excel workbook"),
    "a.docx": (zipped({"a": b"b"}), "is another ZIP archive"),
    "b.docx": (b"text", "is no DOCX file"),
    "c.docx": (b"PK\x03\x04 and no more", "the DOCX file is damaged"),
    "old.docx": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old or encrypted Office file"),
    "a.pdf": (b"text", "is no PDF file"),
    "f.md": (pdf("text"), "is a PDF file: name it .pdf"),
    "a.png": (b"\x89PNG\r\n\x1a\n", "a PNG image, which cannot be read: Markdown, plain text, HTML, PDF and DOCX can"),
    "a.out": (b"\x7fELF", "a program"),
    "g.md": (b"a\n" * 1_000_000, "1,000,001 lines"),
    "h.md": (b"# a\n" * 101, "more than 100 passages"),
    "i.txt": (b"a" * 5_000_001, "has 5,000,001 bytes, and may have at most 5,000,000: divide it"),
}


async def test_files_that_cannot_be_read(opened: Callable[..., Readers], tmp_path: Path) -> None:
    """Each is refused with a reason and a way out, and its name; the reader goes on."""
    readers = opened(children=1, file_bytes=5_000_000, chunks=100)
    for name, (content, reason) in REFUSED.items():
        with pytest.raises(InvalidInput) as caught:
            await readers.read(written(tmp_path, content), name)
        assert reason in caught.value.detail, name
        assert caught.value.got == name
        assert str(tmp_path) not in str(caught.value)
    assert text_of(await readers.read(written(tmp_path, "fine"), "fine.md")) == "fine"


async def test_what_is_no_file(readers: Readers, tmp_path: Path) -> None:
    """Nothing there, a folder, a pipe that nobody writes to, a device, a name with NUL: none is waited for."""
    os.mkfifo(tmp_path / "pipe")
    places = {tmp_path / "none": "No such file", tmp_path: "is no file", tmp_path / "pipe": "is no file"}
    for place, reason in {**places, Path("/dev/zero"): "is no file", Path("a\0b"): "cannot be opened"}.items():
        with pytest.raises(InvalidInput, match=reason):
            await readers.read(place, "a.md")
        with pytest.raises(InvalidInput, match=reason):
            hash_of(place)


async def test_labels_are_checked_and_never_opened(
    readers: Readers, opened: Callable[..., Readers], tmp_path: Path
) -> None:
    """A path that leads anywhere else is refused before anything is read; a file may have any name."""
    for label in ("../a.md", "/etc/passwd", "a/../../b", "a\\b", "", "a\0.md", "a" * 1_025):
        with pytest.raises(InvalidInput, match="path of a document"):
            await readers.read(tmp_path / "none", label)
    assert children() == []
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n."))
    odd.write_text("text")
    assert (await readers.read(odd, "e\u0301.md")).new.file_path == "\u00e9.md"


async def test_files_of_a_gigabyte_are_not_read(readers: Readers, tmp_path: Path) -> None:
    """One line without end: its size is enough to know."""
    file = written(tmp_path, "")
    os.truncate(file, 1 << 30)
    await readers.read(written(tmp_path, "text", "other"), "a.md")
    begun = time.monotonic()
    with pytest.raises(InvalidInput, match=r"1,073,741,824 bytes, and may have at most 20,971,520"):
        await readers.read(file, "a.md")
    assert time.monotonic() - begun < 5


# --- what is converted --------------------------------------------------------------------------------------------

DOCX = docx((1, "Guide"), "First paragraph.", (2, "Install"), "Second paragraph.")
HTML = (
    b"<html><title> A\n page </title><body><h1>One</h1><p>Text of <b>it</b>.</p><h2 id=x>Two</h2><p>More</body></html>"
)


def converted(kind: Kind, content: bytes) -> tuple[str, str | None]:
    """What a file is as Markdown, made in this process."""
    return convert(load_converter(kind), kind, content)


def test_kinds_are_converted_to_markdown() -> None:
    """With their headings, as far as they have any."""
    assert converted(Kind.DOCX, DOCX) == ("# Guide\n\nFirst paragraph.\n\n## Install\n\nSecond paragraph.", None)
    assert converted(Kind.HTML, HTML) == ("# One\n\nText of **it**.\n\n## Two\n\nMore", " A\n page ")
    text, _ = converted(Kind.PDF, pdf("Hello from a page", "and its second line"))
    assert text.split() == ["Hello", "from", "a", "page", "and", "its", "second", "line"]


@pytest.mark.long
async def test_converting_children_are_replaced(readers: Readers, tmp_path: Path) -> None:
    """A child converts one file and ends: what a library does with it stays with it."""
    read = await readers.read(written(tmp_path, HTML), "a/b.html")
    assert (read.new.title, read.new.media_type, read.new.bytes) == ("A page", "text/html", len(HTML))
    found = [(chunk.header_anchor, chunk.heading) for chunk in read.chunks]
    assert found == [("#one", "One"), ("#two", "One > Two")]
    assert children() == []


@pytest.mark.long
async def test_every_kind_in_a_child(readers: Readers, tmp_path: Path) -> None:
    """PDF and DOCX, too, and those that are damaged; blank ones have no text."""
    assert (await readers.read(written(tmp_path, DOCX), "a.docx")).new.title == "Guide"
    assert "Hello" in text_of(await readers.read(written(tmp_path, pdf("Hello")), "a.pdf"))
    assert "Hello" in text_of(await readers.read(written(tmp_path, pdf("Hello")), "no suffix"))
    wrong = {"a.html": (b"<p>\xff", "byte is at 3"), "b.html": (b"<p></p>", "no text"), "a.pdf": (pdf(), "no text")}
    damaged = {"b.pdf": (b"%PDF-1.4\n1 0 obj", "cannot be converted"), "a.docx": (DOCX[:400], "is damaged")}
    for name, (content, reason) in {**wrong, **damaged}.items():
        with pytest.raises(InvalidInput, match=reason):
            await readers.read(written(tmp_path, content), name)


@pytest.mark.parametrize("kind", [Kind.HTML, Kind.PDF, Kind.DOCX])
def test_missing_extra_is_named(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever lacks markitdown, or what it needs for a kind, is told what to install."""
    missing = {Kind.HTML: "markitdown.converters", Kind.PDF: "pdfplumber", Kind.DOCX: "mammoth"}[kind]
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InvalidInput, match=r'pip install "chatkeep\[convert\]"'):
        load_converter(kind)


def test_docx_bombs_are_not_unpacked() -> None:
    """What is said to be too large, or has too many parts, is refused by its directory alone."""
    content = bytearray(docx("text"))
    struct.pack_into("<I", content, content.rindex(b"PK\x01\x02") + 24, MAX_UNPACKED_BYTES)
    with pytest.raises(InvalidInput, match=r"bytes unpacked, and may have at most 10,000 and 209,715,200"):
        check_docx(bytes(content))
    with pytest.raises(InvalidInput, match=r"has 10,003 parts"):
        check_docx(docx("text", parts={f"{n}": b"" for n in range(10_000)}))


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("share", [pytest.param(1, marks=pytest.mark.apart, id="large"), pytest.param(4, id="small")])
async def test_hostile_files_that_are_converted(opened: Callable[..., Readers], tmp_path: Path, share: int) -> None:
    """Zip bombs, entities, deep nesting, deflated streams: refused or read within the limits, and then goes on.

    What takes seconds is a fourth as large in `make check`, or a sixteenth, with half of the memory.
    """
    entities = '<!DOCTYPE d [<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True)
    )
    nested = "<w:p>" * (50_000 // share)
    word = "word/document.xml"
    memory = 400 if share == 1 else 200
    readers = opened(children=1, seconds=40, memory=memory << 20)
    for name, content in {
        "bomb.docx": docx("text", parts={f"{n}": bytes(30 << 20) for n in range(8)}),
        "part.docx": docx("text " * (6 << 20)),
        "entities.docx": zipped({"_rels/.rels": b"", word: f"{entities}]><d>&j;</d>".encode()}),
        "nested.docx": docx(nested),
        "deep.html": b"<div>" * 100_000 + b"text",
        "tags.html": b"<p>a" * (2_000_000 // share**2),
        "stream.pdf": pdf("text", extra=b" q" * (4_000_000 // share)),
    }.items():
        begun = time.monotonic()
        reason = "it is read"
        try:
            assert text_of(await readers.read(written(tmp_path, content), name))
        except InvalidInput as error:
            reason = error.detail
        assert re.search("is read|divide|damaged|unpacked|no text", reason), reason
        assert time.monotonic() - begun < 90, name
    assert text_of(await readers.read(written(tmp_path, "fine"), "fine.md")) == "fine"


# --- children that hang, die, or lie ------------------------------------------------------------------------------


async def test_slow_files_are_given_up(opened: Callable[..., Readers], tmp_path: Path) -> None:
    """After their time, which begins with the child; the next file has a child of its own."""
    readers = opened(children=1, seconds=0.3)
    with pytest.raises(InvalidInput, match=r"takes more than 0\.3 seconds: divide it") as caught:
        await readers.read(written(tmp_path, SLOW), "slow.md")
    assert caught.value.got == "slow.md"
    assert children() == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process")
async def test_files_that_need_too_much_memory(opened: Callable[..., Readers], tmp_path: Path) -> None:
    """Are refused by the limit of the child; the next file is read."""
    readers = opened(children=1, memory=24 << 20)
    with pytest.raises(InvalidInput, match=r"needs more than 24 MB of memory: divide it"):
        await readers.read(written(tmp_path, "\U0001f680" * 3_000_000), "large.md")
    assert text_of(await readers.read(written(tmp_path, "fine"), "fine.md")) == "fine"


async def test_killed_children_are_replaced(readers: Readers, tmp_path: Path) -> None:
    """One that is idle, and one that reads: the file is read again. Twice in a row is taken for the file's fault."""
    file, slow = written(tmp_path, "fine"), written(tmp_path, SLOW, "slow")
    await readers.read(file, "a.md")
    os.kill(children()[0], signal.SIGKILL)
    assert text_of(await readers.read(file, "a.md")) == "fine"
    reading = asyncio.create_task(readers.read(slow, "slow.md"))
    await asyncio.sleep(0.1)
    (first,) = children()
    os.kill(first, signal.SIGKILL)
    await until(lambda: children() not in ([], [first]))
    os.kill(children()[0], signal.SIGSEGV)
    with pytest.raises(
        InvalidInput, match=r"reader ended unexpectedly \(signal 11\); it may be damaged, or need too much"
    ):
        await reading
    assert text_of(await readers.read(file, "a.md")) == "fine"


async def test_cancelled_callers_leave_nothing(readers: Readers, tmp_path: Path) -> None:
    """Not while the child starts, reads, or before its turn; and at once."""
    slow = written(tmp_path, SLOW)
    for wait in (0.01, 0.7):
        reading, waiting = (asyncio.create_task(readers.read(slow, "slow.md")) for _ in range(2))
        await asyncio.sleep(wait)
        begun = time.monotonic()
        for task in (waiting, reading):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert time.monotonic() - begun < 0.5
        await until(lambda: len(children()) == 0)
    assert text_of(await readers.read(written(tmp_path, "fine"), "fine.md")) == "fine"


async def test_cancelled_when_its_file_was_read(readers: Readers, tmp_path: Path) -> None:
    """Who is cancelled in the moment in which its file was read leaves the child, alive, to the next caller."""
    file = written(tmp_path, "text")
    task = asyncio.create_task(readers.read(file, "a.txt"))
    await until(lambda: bool(readers._works))
    (work,) = readers._works
    work.add_done_callback(lambda _: task.cancel())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await readers.read(file, "b.txt")).new.file_path == "b.txt"


async def test_closing_ends_what_is_read(opened: Callable[..., Readers], tmp_path: Path) -> None:
    """And what waits for its turn; closing again is fine, reading is not."""
    readers = opened(children=1)
    tasks = [asyncio.create_task(readers.read(written(tmp_path, SLOW), "slow.md")) for _ in range(2)]
    await until(lambda: len(children()) == 1)
    await readers.aclose()
    assert children() == []
    await readers.aclose()
    for task in tasks:
        with pytest.raises(RuntimeError, match="closed"):
            await task
    with pytest.raises(RuntimeError, match="closed"):
        await readers.read(tmp_path / "none", "a.md")


async def test_idle_children_leave(opened: Callable[..., Readers], tmp_path: Path) -> None:
    """After a while."""
    readers = opened(idle=0.2)
    file = written(tmp_path, "text")
    await readers.read(file, "a.md")
    await until(lambda: len(children()) == 0)


async def test_only_so_many_children_read(opened: Callable[..., Readers], tmp_path: Path) -> None:
    """Others wait for their turn, and the children are used again."""
    readers = opened(children=2)
    file, used = written(tmp_path, "# a\ntext\n" * 1_000), set[int]()
    reading = asyncio.gather(*(readers.read(file, f"{n}.md") for n in range(8)))
    while not reading.done():
        used.update(children())
        await asyncio.sleep(0.02)
    assert len({text_of(each) for each in await reading}) == 1
    assert 1 <= len(used) <= 2


@pytest.mark.parametrize(
    ("program", "error", "reason"),
    [
        ("", RuntimeError, "does not start"),
        ("raise SystemExit('no module')", RuntimeError, "does not start: no module"),
        ("hello(); read()", InvalidInput, "ended unexpectedly"),
        ("hello(); read(); say(b'{}')", InvalidInput, "told what cannot be true"),
        ("hello(); read(); say(b'\\xff[')", InvalidInput, "told what cannot be true"),
        ("hello(); read(); out.write(struct.pack('>II', 1 << 31, 1))", InvalidInput, "told what cannot be true"),
        ("hello(); read(); out.write(struct.pack('>II', 1, 2) + b'a')", InvalidInput, "told what cannot be true"),
        ("hello(); read(); say(told(chunks=10**9))", InvalidInput, "told what cannot be true"),
        ("hello(); read(); say(told(chars=10**9))", InvalidInput, "told what cannot be true"),
        ("hello(); read(); say(told()); say(b'[]')", InvalidInput, "told what cannot be true"),
        (
            'hello(); read(); say(told()); say(b\'[["ab",null,"",0,0],["ab",null,"",1,0]]\')',
            InvalidInput,
            "told what cannot be true",
        ),
    ],
)
async def test_children_are_not_trusted(
    program: str,
    error: type[Exception],
    reason: str,
    opened: Callable[..., Readers],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a child may not tell is an error, and is not waited for; neither is one that does not start."""
    lying = """
import json, os, struct, sys
out = sys.stdout.buffer
def say(text): out.write(struct.pack('>II', len(text), len(text)) + text); out.flush()
def hello(): say(b'{}')
def read(): os.read(0, 9_999)
def told(**other):
    return json.dumps({'kind': 'read', 'title': None, 'media_type': 'text/plain', 'bytes': 1, 'sha256': '0' * 64,
        'chars': 4, 'chunks': 2, 'is_last': False} | other).encode()
"""
    monkeypatch.setattr(reading_process, "COMMAND", (sys.executable, "-S", "-c", lying + program))
    readers = opened()
    with pytest.raises(error, match=reason):
        await readers.read(written(tmp_path, "text"), "a.md")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_children_know_no_secrets(readers: Readers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the environment, and no open files of their parent."""
    monkeypatch.setenv("CHATKEEP_DATABASE_URL", "secret")
    await readers.read(written(tmp_path, "text"), "a.md")
    (pid,) = children()
    place = Path(f"/proc/{pid}")
    assert re.findall(r"(?:^|\0)([^=]+)=", (place / "environ").read_text()) == ["PYTHONPATH"]
    files = [str(each.readlink()) for each in (place / "fd").iterdir()]
    assert all(file.startswith("pipe:") for file in files), files


def test_children_have_no_network(tmp_path: Path) -> None:
    """Nor other programs, nor files to write, however a library asks for them."""
    program = """
import os, socket, subprocess, sys
from chatkeep.reading import child as reading_child
sys.stdin = open(os.devnull)
reading_child.main()
def connect(): socket.create_connection(("127.0.0.1", 9))
def write(): open(sys.argv[1], "w").write("a" * 9_999)
for work in (connect, lambda: subprocess.run(["true"]), lambda: os.system("true"), write):
    try:
        work()
    except OSError as error:
        print(type(error).__name__, file=sys.stderr)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "written")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.split() == ["PermissionError"] * 3 + ["OSError"]


# --- frames -------------------------------------------------------------------------------------------------------


def split(message: bytes) -> tuple[bytes, bytes]:
    """The JSON of a frame, and the rest."""
    size, json_size = LENGTHS.unpack(message[: LENGTHS.size])
    assert len(message) == size + LENGTHS.size <= MAX_FRAME_BYTES
    return message[LENGTHS.size :][:json_size], message[LENGTHS.size + json_size :]


@pytest.mark.parametrize("text", ["a", "\x01\u2028\U0001f680", "\x01" * MAX_CHUNK_CHARS])
def test_chunks_arrive_in_small_frames(text: str) -> None:
    """As they were sent, and each frame takes less time than an event loop may be held."""
    count = 20_000 if len(text) < 9 else 100
    terms = b"1234" * (len(text) if len(text) > 9 else 0)
    sent = [NewChunk(text, "#a", "A > B", n * len(text), terms) for n in range(count)]
    received: list[NewChunk] = []
    for message in chunk_frames(sent):
        json, rest = split(message)
        start = len(received) * len(text)
        times = []
        for _ in range(3):
            begun = time.thread_time()
            chunks = chunks_of(json, rest, start)
            times.append(time.thread_time() - begun)
        assert min(times) < 0.005
        received += chunks
    assert received == sent


@pytest.mark.parametrize(
    ("json", "rest"),
    [
        (b"[]", b""),
        (b"{}", b""),
        (b'[["a",null,"",1,0]]', b""),
        (b'[["a",null,"",0,4]]', b""),
        (b'[["a",null,"",0,0]]', b"1234"),
        (b'[["a",null,"",0,3]]', b"123"),
        (b'[["",null,"",0,0]]', b""),
        (b'[["\\ud800",null,"",0,0]]', b""),
        (b'[["a",1,"",0,0]]', b""),
        (b'[["%b",null,"",0,0]]' % (b"a" * (MAX_CHUNK_CHARS + 1)), b""),
        (b'[["a",null,"%b",0,0]]' % (b"a" * 1_001), b""),
        (b"[" * 100_000, b""),
    ],
)
def test_wrong_frames_are_refused(json: bytes, rest: bytes) -> None:
    """Nothing but chunks that follow one another, within the limits."""
    with pytest.raises(ValueError, match=r"."):
        chunks_of(json, rest, 0)


def test_kinds_of_files_without_a_known_name() -> None:
    """A PDF is known by how it begins, anything else is text."""
    assert kind_of("a", b"%PDF-1.7") is Kind.PDF
    assert kind_of("a.pdf", b"\n\n%PDF-1.7") is Kind.PDF
    assert kind_of("a.b", b"text with %PDF- in it") is Kind.TEXT
