"""Attacks by files that are uploaded as documents, and by searches in them."""

import io
import json
import time
import zipfile
from collections.abc import Callable
from functools import partial
from urllib.parse import quote

from benchmarks.attacker import Attack, Attacker

SIZE = (20 << 20) - 100
SECONDS = 8.0
BOUNDARY = b"----------------boundary"


def ordinary() -> bytes:
    """Markdown as people write it."""
    section = b"## Section %d\n\n" + b"Some words of a sentence that says little. " * 20 + b"\n\n"
    return b"".join(section % number for number in range(SIZE // (len(section) + 4)))


def headings() -> bytes:
    """A hundred thousand headings, each of a level of its own."""
    return b"".join(b"#" * (1 + n % 6) + b" h%d\n" % n for n in range(100_000))


def one_line() -> bytes:
    """One line."""
    return b"words " * (SIZE // 6)


def marks() -> bytes:
    """One letter with combining marks."""
    return ("a" + "\u0301\u0327" * (SIZE // 4 - 1)).encode()


def nested() -> bytes:
    """Quotes in quotes."""
    return (b"> " * 1_000 + b"x\n") * (SIZE // 2_002)


def rules() -> bytes:
    """What might be lists, or rules, or neither."""
    return b"- " * (SIZE // 2)


def nul() -> bytes:
    """Text with a NUL at its end."""
    return b"x " * (SIZE // 2 - 1) + b"\0"


def not_utf8() -> bytes:
    """Text whose last byte is none of UTF-8."""
    return b"x " * (SIZE // 2 - 1) + b"\xff"


def bomb() -> bytes:
    """A DOCX file that is a gigabyte unpacked."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        with archive.open("word/document.xml", "w", force_zip64=True) as part:
            for _ in range(1_024):
                part.write(b" " * (1 << 20))
    return packed.getvalue()


def archive() -> bytes:
    """A ZIP archive, named as Markdown."""
    return b"PK\x03\x04" + b"\0" * 1_000_000


def project(attacker: Attacker) -> str:
    """The path of a new project."""
    _, body = attacker.ask("POST", "/api/projects", b'{"name": "x"}')
    return f"/api/projects/{json.loads(body)['id']}"


def upload(attacker: Attacker, where: str, name: str, content: bytes) -> tuple[int, bytes]:
    """Upload a file, on a connection of its own."""
    head = f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
    body = b"--%s\r\n%s%s\r\n--%s--\r\n" % (BOUNDARY, head, content, BOUNDARY)
    request = (
        f"POST {where}/documents HTTP/1.1\r\nHost: 127.0.0.1:{attacker.port}\r\n"
        f"Authorization: Bearer {attacker.token}\r\nContent-Type: multipart/form-data; boundary={BOUNDARY.decode()}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return attacker.exchange(request.encode() + body)


def uploads(attacker: Attacker, make: Callable[[], bytes], name: str = "x.md") -> None:
    """Upload a file, again and again, two at a time, each time another one."""
    content, where = make(), project(attacker)

    def work(number: int) -> None:
        upload(attacker, where, f"{number}-{name}", content + (b"%d" % number if name.endswith(".md") else b""))

    attacker.for_seconds(SECONDS, 2, work)


def many(attacker: Attacker) -> None:
    """Small files as fast as they are taken, and a search after each."""
    where = project(attacker)

    def work(number: int) -> None:
        upload(attacker, where, f"{number}.md", b"# Title %d\n\nSome words.\n" % number)
        attacker.ask("GET", f"{where}/search?q=words")

    attacker.for_seconds(SECONDS, 4, work)


def searches(attacker: Attacker) -> None:
    """The longest questions, in a project of 20 MB."""
    where = project(attacker)
    upload(attacker, where, "x.md", ordinary())
    question = quote(" ".join(f"words{number}" for number in range(300))[:2_000])
    attacker.for_seconds(SECONDS, 8, lambda _: attacker.ask("GET", f"{where}/search?q={question}&limit=50"))


def replaced(attacker: Attacker) -> None:
    """A document of 20 MB that is replaced, deleted with its project, and stored again."""

    def work(number: int) -> None:
        where = project(attacker)
        upload(attacker, where, "x.md", ordinary() + b"%d" % number)
        attacker.ask("DELETE", where)

    attacker.for_seconds(SECONDS, 2, work)


def slowly(attacker: Attacker) -> None:
    """Forms of which a byte comes now and then."""
    where = project(attacker)

    def work(_: int) -> None:
        with attacker.connect() as connection:
            head = (
                f"POST {where}/documents HTTP/1.1\r\nHost: 127.0.0.1:{attacker.port}\r\n"
                f"Authorization: Bearer {attacker.token}\r\nContent-Length: 100000\r\n"
                f"Content-Type: multipart/form-data; boundary={BOUNDARY.decode()}\r\n\r\n"
            )
            attacker.requests += 1
            attacker.send(connection, head.encode())
            for _ in range(10):
                attacker.send(connection, b"-")
                time.sleep(SECONDS / 10)

    attacker.for_seconds(SECONDS, 32, work)


FILES = {
    "ordinary": (ordinary, "20 MB of Markdown"),
    "headings": (headings, "100,000 headings"),
    "line": (one_line, "20 MB in one line"),
    "marks": (marks, "20 MB of combining marks"),
    "nested": (nested, "20 MB of quotes, 1,000 deep"),
    "rules": (rules, "20 MB of what might be lists"),
    "nul": (nul, "20 MB with a NUL"),
    "bytes": (not_utf8, "20 MB whose last byte is not UTF-8"),
    "archive": (archive, "an archive named .md"),
}

ATTACKS = (
    *(
        Attack(f"uploads-{name}", partial(uploads, make=make), f"uploads: {says}")
        for name, (make, says) in FILES.items()
    ),
    Attack("uploads-bomb", partial(uploads, make=bomb, name="x.docx"), "uploads: a DOCX that is 1 GB unpacked"),
    Attack("uploads-many", many, "small uploads, and a search after each"),
    Attack("uploads-search", searches, "the longest questions, in 20 MB of text"),
    Attack("uploads-replaced", replaced, "20 MB uploaded, and deleted with its project"),
    Attack("uploads-slowly", slowly, "32 uploads by single bytes"),
)
