"""What `import` reads and where `export` writes: pipes, links, damaged files and files of other kinds."""

import contextlib
import fcntl
import gzip
import json
import os
import signal
import stat
import subprocess
import sys
import tarfile
import termios
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path

import apsw
import pytest
from commands import COMMAND, SAMPLE, run

from chatkeep.cli.input import SPOOL_BYTES, read_lines
from chatkeep.cli.kinds import kind_of

CONVERSATIONS = SAMPLE.read_bytes().splitlines(keepends=True)


def conversation(name: str, size: int = 10) -> bytes:
    """A line with one message of `size` bytes."""
    content = os.urandom(size // 2).hex()  # which does not become short when it is compressed
    message = {"id": "1", "parent_id": None, "role": "user", "content": content}
    return json.dumps({"id": name, "messages": [message]}).encode() + b"\n"


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of a store with the sample."""
    url = f"sqlite:///{tmp_path / 'chat.db'}"
    run({}, "import", SAMPLE, "--database-url", url)
    return url


@pytest.fixture
def exported(url: str) -> bytes:
    """What an export of it is."""
    return run({}, "export", "--database-url", url).stdout_bytes


@contextlib.contextmanager
def running(*arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a process of its own."""
    command = [*COMMAND, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def read(content: bytes | BytesIO, **options: int) -> tuple[list[bytes], list[tuple[int | None, str]]]:
    """The lines of a file, and what was reported of it."""
    reports: list[tuple[int | None, str]] = []
    stream = BytesIO(content) if isinstance(content, bytes) else content
    return list(read_lines(stream, lambda number, reason: reports.append((number, reason)), **options)), reports


# --- import -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_byte_order_mark_is_skipped(pack: Callable[[bytes], bytes]) -> None:
    """A file that an editor began with a byte order mark has the lines that it would have without."""
    assert read(pack(b"\xef\xbb\xbf" + SAMPLE.read_bytes())) == (CONVERSATIONS, [])


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", gzip.compress(b"", mtime=0)])
def test_an_empty_file_is_fine(content: bytes) -> None:
    """There is nothing in it, and nothing wrong with it."""
    lines, reports = read(content)
    assert not [line for line in lines if line.strip()]
    assert reports == []


def tar(name: str = "conversations.jsonl") -> bytes:
    """A tar archive with the sample."""
    written = BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = SAMPLE.stat().st_size
        archive.addfile(info, BytesIO(SAMPLE.read_bytes()))
    return written.getvalue()


def zipped() -> bytes:
    """A zip archive with the sample."""
    written = BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.write(SAMPLE)
    return written.getvalue()


ROWS = [json.loads(line) for line in CONVERSATIONS]

KINDS: dict[str, Callable[[], bytes]] = {
    "a zip archive": zipped,
    "a SQLite database": lambda: b"SQLite format 3\0" + bytes(84),
    "a dump of PostgreSQL": lambda: b"PGDMP\x01\x10\n\n\n",
    "a PDF document": lambda: b"%PDF-1.7\n%\xe2\xe3\n",
    "a PNG image": lambda: b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "a JPEG image": lambda: b"\xff\xd8\xff\xe0\0\x10JFIF\0",
    "compressed with bzip2": lambda: b"BZh91AY&SY\n\n\n",
    "compressed with xz": lambda: b"\xfd7zXZ\0\0\x04\n\n",
    "compressed with zstd": lambda: b"(\xb5/\xfd\x04\n\n\n",
    "a gzip archive in another one": lambda: gzip.compress(gzip.compress(SAMPLE.read_bytes())),
    "a tar archive": tar,
    "a tar archive; unpack it": lambda: gzip.compress(tar()),
    "text in UTF-16": lambda: SAMPLE.read_text("utf-8").encode("utf-16"),
    "text in UTF-16; save": lambda: SAMPLE.read_text("utf-8").encode("utf-16-le"),
    "text in UTF-16; save it": lambda: SAMPLE.read_text("utf-8").encode("utf-16-be"),
    "binary data": lambda: b"\x7fELF\x02\x01\x01\0\0\0\n\0\n",
    "a JSON array": lambda: json.dumps(ROWS).encode(),
    "a JSON array, as": lambda: b"\n" + json.dumps(ROWS, indent=2).encode(),
    "one JSON document over many lines": lambda: json.dumps(ROWS[0], indent=2).encode(),
    "HTML or XML": lambda: b"\xef\xbb\xbf<!DOCTYPE html>\n<html>\n",
    "a table such as CSV": lambda: b'id,role,content\n1,user,"Hi"\n2,assistant,Hello\n',
    "text of another kind": lambda: b"Notes\n\nThe first thing.\nThe second.\n",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_kind_is_one_error(kind: str) -> None:
    """It says what the file seems to be, and no line of it is tried."""
    lines, reports = read(KINDS[kind]())
    assert lines == []
    ((number, reason),) = reports
    assert number is None
    assert f"it seems to be {kind}" in reason


@pytest.mark.parametrize(
    "start",
    [
        b'{"id": "x"}\n',
        b'  {"id": "x"}\r\n',
        b"\n \n" + CONVERSATIONS[0],
        b'rest of a line","messages":[]}\n' + CONVERSATIONS[0],
        b"# exported today\n" + CONVERSATIONS[0] * 3,
        b'not json at all: {"id"\n',
        b"x" * 9_000,
        '{"id": "\u2603 SQLite format 3, <html>, [1, 2]"}\n'.encode(),
        *CONVERSATIONS,
    ],
)
def test_what_may_be_json_lines_is_not_refused(start: bytes) -> None:
    """A file is refused as a whole only if it cannot be JSON Lines with at most a broken first line."""
    assert kind_of(start) is None
    assert read(start)[1] == []


@pytest.mark.parametrize("pack", [bytes, partial(gzip.compress, compresslevel=0)])
@pytest.mark.parametrize("most", [10_000, SPOOL_BYTES + 100, 2 * SPOOL_BYTES])
def test_a_line_that_is_too_long_is_refused_alone(pack: Callable[[bytes], bytes], most: int) -> None:
    """It is named with its number and size, and an empty line stands for it; the longest that may be is read whole."""
    long, fits = conversation("long", most), conversation("fits").strip().ljust(most - 1) + b"\n"
    lines, reports = read(pack(CONVERSATIONS[0] + long + fits + long), max_bytes=most)
    assert lines == [CONVERSATIONS[0], b"\n", fits, b"\n"]
    assert [number for number, _ in reports] == [2, 4]
    assert f"{len(long):,} bytes" in reports[0][1]
    assert f"--max-line-bytes allows {most:,}" in reports[0][1]


MEMORY = """
import resource, sys
from chatkeep.__main__ import main
sys.argv[1:] = {arguments}
try:
    main()
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""


def test_memory_is_bounded_also_in_an_archive(tmp_path: Path) -> None:
    """A small archive of a line of 120 MB takes no more memory than the sample, and the line after it is stored."""
    file = tmp_path / "bomb.jsonl.gz"
    with gzip.open(file, "wb", 1) as packed:
        packed.write(b'{"id":"bomb","messages":[],"title":"')
        for _ in range(120):
            packed.write(b"x" * 1_000_000)
        packed.write(b'"}\n' + CONVERSATIONS[0])
    peaks = []
    for read_file, code in ((SAMPLE, 0), (file, 1)):
        url = f"sqlite:///{tmp_path / read_file.name}.db"
        arguments = ["import", str(read_file), "--database-url", url, "--max-line-bytes", "100000000"]
        done = subprocess.run(
            [sys.executable, "-c", MEMORY.format(arguments=arguments)], capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        peaks.append(int(done.stdout.split()[-1]))
    assert "bomb.jsonl.gz:1: the line has 120,000,039 bytes" in done.stderr
    assert "1 new, 0 known, 0 changed, 1 refused" in done.stdout
    assert peaks[1] - peaks[0] < 40


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda packed: packed[:-200], "ended before the end-of-stream marker"),
        (lambda packed: packed[:-8] + b"\0\0\0\0" + packed[-4:], "CRC check failed"),
        (lambda packed: packed + b"garbage", "Not a gzipped file"),
    ],
)
def test_what_came_before_the_damage_is_imported(damage: Callable[[bytes], bytes], reason: str, tmp_path: Path) -> None:
    """Of a damaged archive all whole lines before the damage are stored, and one error says after which line it is."""
    file, lines = tmp_path / "broken.jsonl.gz", [conversation(f"{n}", 20 + n) for n in range(200)]
    file.write_bytes(damage(gzip.compress(b"".join(lines), 0)))
    done = run({}, "import", file, "--database-url", f"sqlite:///{tmp_path / 'chat.db'}", code=1)
    whole = done.stdout.split()[0]
    assert int(whole) >= 195
    assert f"broken.jsonl.gz: cannot be read further than line {whole}: " in done.stderr
    assert reason in done.stderr


def test_an_archive_may_come_through_a_pipe(tmp_path: Path, exported: bytes) -> None:
    """Standard input and a FIFO may be compressed, too."""
    pipe, packed = tmp_path / "pipe", gzip.compress(exported)
    os.mkfifo(pipe)
    threading.Thread(target=pipe.write_bytes, args=(packed,)).start()
    for source, stdin in (("-", packed), (pipe, b"")):
        url = f"sqlite:///{tmp_path / Path(source).name}.db"
        assert "7 new" in run({}, "import", source, "--database-url", url, stdin=stdin).stdout


def test_a_folder_is_not_imported(tmp_path: Path) -> None:
    """It is named in a sentence."""
    done = run({}, "import", tmp_path, "--database-url", f"sqlite:///{tmp_path / 'chat.db'}", code=1)
    assert "it is a folder" in done.stderr


# --- export -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["/dev/stdout", pytest.param("/proc/self/fd/1", marks=pytest.mark.long)])
def test_names_of_standard_output(target: str, url: str, exported: bytes, tmp_path: Path) -> None:
    """They are standard output, which goes on where it is: a file that something else is written to keeps that."""
    assert run({}, "export", "-", "--database-url", url).stdout_bytes == exported
    output = tmp_path / "out"
    with output.open("ab") as stream:
        stream.write(b"before\n")
        stream.flush()
        subprocess.run([*COMMAND, "export", target, "--database-url", url], stdout=stream, check=True)
        stream.write(b"after\n")
    assert output.read_bytes() == b"before\n" + exported + b"after\n"


@pytest.mark.parametrize(("name", "unpack"), [("pipe", bytes), ("pipe.gz", gzip.decompress)])
def test_a_pipe_stays_one(
    name: str, unpack: Callable[[bytes], bytes], url: str, exported: bytes, tmp_path: Path
) -> None:
    """Who reads from a FIFO gets the export."""
    pipe, found = tmp_path / name, list[bytes]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    run({}, "export", pipe, "--database-url", url)
    reader.join(10)
    assert unpack(found[0]) == exported
    assert pipe.is_fifo()


def test_a_link_is_followed(url: str, exported: bytes, tmp_path: Path) -> None:
    """The file that a link leads to is replaced, whether it was there or not; the link stays."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in ("old", "new"):
        link = tmp_path / name
        link.symlink_to(folder / name)
        if name == "old":
            link.write_bytes(b"old")
        run({}, "export", link, "--database-url", url)
        assert link.is_symlink()
        assert (folder / name).read_bytes() == exported
    assert sorted(path.name for path in folder.iterdir()) == ["new", "old"]


def test_modes_of_exports(url: str, tmp_path: Path) -> None:
    """A new file is for its user alone; one that is replaced keeps its mode."""
    new, old = tmp_path / "new.jsonl", tmp_path / "old.jsonl"
    old.touch()
    old.chmod(0o640)
    for file, mode in ((new, 0o600), (old, 0o640)):
        run({}, "export", file, "--database-url", url)
        assert stat.S_IMODE(file.stat().st_mode) == mode


@pytest.mark.parametrize("name", ["chat.db", "link.db", "chat.db-wal"])
def test_a_store_is_not_exported_over_itself(name: str, url: str, exported: bytes, tmp_path: Path) -> None:
    """Neither over its file, by whichever name, nor over its log."""
    (tmp_path / "link.db").symlink_to("chat.db")
    assert "is the store itself" in run({}, "export", tmp_path / name, "--database-url", url, code=1).stderr
    assert run({}, "export", "--database-url", url).stdout_bytes == exported


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("missing/out.jsonl", "No such file or directory"),
        ("folder", "Is a directory"),
        ("chat.db/out.jsonl", "Not a directory"),
        ("n" * 300, "File name too long"),
        ("/proc/out.jsonl", "No such file or directory"),
        ("/dev/full", "No space left on device"),
    ],
)
def test_what_cannot_be_written_is_a_sentence(target: str, reason: str, url: str, tmp_path: Path) -> None:
    """The target is named with the reason, without a traceback, and nothing is left behind."""
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    done = run({}, "export", tmp_path / target, "--database-url", url, code=1)
    assert done.stderr == f"Error: cannot write {tmp_path / target}: {reason}\n"
    assert sorted(tmp_path.rglob("*")) == before


def test_an_export_that_fails_leaves_the_old_file(large: str, tmp_path: Path) -> None:
    """A file is as it was if the new one cannot be completed."""
    old = tmp_path / "old.jsonl"
    old.write_bytes(b"old")
    run({}, "export", old, "--database-url", f"sqlite:///{tmp_path / 'missing.db'}", code=1)
    limited = f"ulimit -f 512; exec {' '.join(COMMAND)} export {old} --database-url {large}"
    done = subprocess.run(["/bin/bash", "-c", limited], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"Error: cannot write {old}: File too large\n")
    assert old.read_bytes() == b"old"
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("name", "stop", "code"),
    [
        ("out.jsonl", signal.SIGINT, 130),
        pytest.param("out.jsonl", signal.SIGTERM, 143, marks=pytest.mark.long),
        ("pipe", signal.SIGINT, 130),
        pytest.param("pipe.gz", signal.SIGINT, 130, marks=pytest.mark.long),
    ],
)
def test_a_stopped_export_leaves_nothing(name: str, stop: int, code: int, large: str, tmp_path: Path) -> None:
    """Ctrl-C ends an export, also one whose reader does not read. It leaves no file, and says so."""
    target = tmp_path / name
    if name.startswith("pipe"):
        os.mkfifo(target)
        reader = os.open(target, os.O_RDONLY | os.O_NONBLOCK)
    with running("export", target, "--database-url", large) as process:
        if name.startswith("pipe"):
            wait_until(lambda: waiting(reader) > 30_000)
            time.sleep(0.2)  # until nothing more fits into the pipe
        else:
            wait_until(lambda: any(part.stat().st_size for part in tmp_path.glob("*.part")))
        process.send_signal(stop)
        assert process.wait(10) == code
        assert process.stderr is not None
        assert process.stderr.read() == b"Error: stopped; the export is not complete, and has replaced no file\n"
    assert list(tmp_path.iterdir()) == ([target] if name.startswith("pipe") else [])


def test_a_reader_that_goes_ends_the_export_quietly(large: str) -> None:
    """`| head` ends it without a word, with the code of SIGPIPE."""
    with running("export", "--database-url", large) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(10) == 141
        assert process.stderr.read() == b""


def waiting(reader: int) -> int:
    """Bytes in a pipe that nobody has read yet."""
    return int.from_bytes(fcntl.ioctl(reader, termios.FIONREAD, bytes(4)), sys.byteorder)


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait until something is so, for ten seconds at most."""
    end = time.monotonic() + 10
    while True:
        try:
            if is_so():
                return
        except (BlockingIOError, FileNotFoundError):
            pass
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a store whose export takes a while."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "in.jsonl").write_bytes(b"".join(conversation(f"{n}", 2_000) for n in range(1_500)))
    url = f"sqlite:///{folder / 'chat.db'}"
    run({}, "import", folder / "in.jsonl", "--database-url", url + "?search=off")
    yield url
    assert apsw.Connection(str(folder / "chat.db")).execute("PRAGMA quick_check").get == "ok"
