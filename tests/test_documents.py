"""What documents and projects are given: paths, hashes, and the ids that are made of them."""

import unicodedata
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatkeep.documents import NewDocument, content_id, document_id, space_of
from chatkeep.errors import InvalidInput
from chatkeep.projects import NewProject

ANY_STRING = st.text(st.characters(exclude_categories=()))


@pytest.mark.parametrize(
    ("given_path", "kept"),
    [
        ("guide/install.md", "guide/install.md"),
        ("e\u0301.md", "é.md"),
        ("\u212b", "Å"),
        ("a b/ c ", "a b/ c "),
        (".hidden/..a/a..", ".hidden/..a/a.."),
        ("...", "..."),
        ("~/$HOME/%2e%2e/C:", "~/$HOME/%2e%2e/C:"),
        ("\ud83c\udf31.md", "🌱.md"),
        ("a\ud800.md", "a\ufffd.md"),
        ("\u202e", "\u202e"),
        ("x" * 1_024, "x" * 1_024),
        ("e\u0301" * 1_024, "é" * 1_024),
    ],
    ids=ascii,
)
def test_paths_of_documents(given_path: str, kept: str) -> None:
    """A path is normalised (NFC), and otherwise kept; it is a label, and what looks like an escape is one."""
    assert path_of(given_path) == kept
    assert path_of(kept) == kept


@pytest.mark.parametrize(
    "bad",
    [
        "", " ", "/", "/etc/passwd", "a//b", "a/", "/a", "a/ /b", ".", "..", "../a", "a/..", "a/../b", "./a", "a/./b",
        "a\\b", "\\\\host\\a", "C:\\a", "a\x00", "\na", "a\x7f", "a\x85", "\t", "x" * 1_025, "a/" * 512 + "ab",
        "\u0344" * 1_000, "x" * 5_000, None, 7, ["a"],
    ],
    ids=ascii,
)  # fmt: skip
def test_paths_that_documents_cannot_have(bad: Any) -> None:
    """A path that is absolute, climbs, has empty parts, backslashes or control characters is refused."""
    with pytest.raises(InvalidInput, match="file_path"):
        path_of(bad)


@given(ANY_STRING)
def test_any_path_is_refused_or_names_a_place_inside(text: str) -> None:
    """Whatever is given: what is taken is relative, normal, and leads nowhere else."""
    try:
        path = path_of(text)
    except InvalidInput:
        return
    assert path == unicodedata.normalize("NFC", path)
    assert PurePosixPath("/project", path).is_relative_to("/project/")
    assert not {"", ".", ".."} & set(path.split("/"))
    assert "\\" not in path
    assert document_id(UUID(int=1), path) == document_id(UUID(int=1), path_of(path))


def path_of(path: Any) -> str:
    """The path that a document has to which this one is given."""
    return NewDocument(file_path=path, media_type="text/plain", bytes=1, sha256="0" * 64).file_path


@pytest.mark.parametrize(
    "bad",
    [
        {"media_type": "text"}, {"media_type": "text/"}, {"media_type": "Text/plain"}, {"media_type": "text/x y"},
        {"media_type": "text/plain; charset=utf-8"}, {"media_type": "text/" + "x" * 101}, {"media_type": "text/x\n"},
        {"bytes": -1}, {"bytes": 2**63}, {"bytes": "1"}, {"sha256": "0" * 63}, {"sha256": "A" * 64}, {"title": ""},
        {"sha256": "0" * 64 + "\n"}, {"title": "x" * 256}, {"id": UUID(int=1)},
    ],
    ids=ascii,
)  # fmt: skip
def test_documents_that_are_refused(bad: dict[str, Any]) -> None:
    """A document needs a media type, a size and a hash; unknown fields are errors."""
    values: dict[str, Any] = {"file_path": "a", "media_type": "text/plain", "bytes": 1, "sha256": "0" * 64}
    NewDocument(**values)
    with pytest.raises(InvalidInput, match=next(iter(bad))):
        NewDocument(**{**values, **bad})


def test_names_of_spaces() -> None:
    """A space is named for its embedder and dimension; a name that is too long, by its hash."""
    assert space_of("small", 384) == "small/384"
    long = {space_of("x" * count, 384) for count in (197, 300, 301)}
    assert [len(each) <= 200 for each in long] == [True] * 3


def test_ids_of_documents_never_change() -> None:
    """The ids of documents and contents are made of what they are of, and stored in databases: they stay."""
    project = UUID("5e1c7a0e-0d5b-5f0c-9d5a-6b1f2a7c4e93")
    document = document_id(project, "guide/é.md")
    assert document == UUID("c62669d9-6ff1-5864-aac4-6c807dcbad47")
    assert content_id(document, "0" * 64) == UUID("a2deb4d5-c9eb-50d2-8d01-6bc377d300bf")
    assert NewProject(name="Garden").fingerprint().hex() == "aba06dc8a897dafc048c9d81fa95dbb1"
    assert (
        NewProject(id=project, name="a\nb", metadata={"b": 1, "a": []}).fingerprint().hex()
        == "1aedf96801042804f61a51822e1ad546"
    )
