"""What a passage and a question have in common."""

import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatkeep.documents import MAX_CHUNK_TERMS
from chatkeep.retrieval.terms import MAX_TERM_CHARS, pack_terms, terms_of

TEXTS = st.text(max_size=60) | st.text("tea TÉ茶ｶﾞかゞ\u3099\u0301ßſǅİıΣςﷺ½Ⅷ한글ﾞไทย_.'\"\x00", max_size=30)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("", []),
        ("How do I install it?", ["instal"]),
        ("Installing the installed installers", ["instal", "instal", "instal"]),
        ("Don't we've they're", []),
        ("Straße ﬁne naïve ＷＩＤＥ", ["strass", "fine", "naiv", "wide"]),
        ("call ray.init() now", ["call", "ray", "init", "ray.init"]),
        ("foo_bar=1.5", ["foo", "bar", "1", "5", "foo_bar", "1.5"]),
        ("HTTPServer", ["httpserver", "http", "server"]),
        ("loadCSV2Table", ["loadcsv2tabl", "load", "csv", "2", "tabl"]),
        ("Ends here. Next one…", ["end", "next", "one"]),
        ("中文字", ["中文", "文字"]),
        ("茶", ["茶"]),
        ("ไทย", ["ไท", "ทย"]),
        ("한글 tea茶室", ["한글", "tea", "茶室"]),
        ("\u200b \u0301 … !?", []),
    ],
)
def test_terms(text: str, terms: list[str]) -> None:
    """Stems of words, pairs of characters, identifiers whole and in parts."""
    assert terms_of(text) == terms


@settings(max_examples=50)
@given(text=TEXTS)
def test_numbers_are_those_of_the_terms(text: str) -> None:
    """Each term is stored as its checksum, in its order."""
    assert pack_terms(text) == b"".join(struct.pack("<I", zlib.crc32(term.encode())) for term in terms_of(text))


@settings(max_examples=50)
@given(text=TEXTS)
def test_composed_and_decomposed_text_have_the_same_terms(text: str) -> None:
    """Soft hyphens and accents do not matter."""
    assert terms_of(f"\u00ad{text}\u0301") == terms_of(text)


def test_numbers_stay_what_they_are() -> None:
    """Whoever changes what a term is moves `TERMS_RULE`: the numbers are stored."""
    text = "Generating configurations: ray.init(num_cpus=4) starts TorchTrainer; 東京都 naïvely"
    assert zlib.crc32(pack_terms(text)) == 4155076643


def test_a_chunk_has_so_many_terms_at_most() -> None:
    """The first ones count."""
    packed = pack_terms("tea " * MAX_CHUNK_TERMS + "coffee")

    assert packed == pack_terms("tea") * MAX_CHUNK_TERMS


def test_long_words_are_cut() -> None:
    """Two that differ later are the same."""
    assert terms_of("x" * MAX_TERM_CHARS + "y") == ["x" * MAX_TERM_CHARS]


@pytest.mark.parametrize(
    "pattern",
    [
        "a",
        "a.",
        "a..",
        "._",
        "aB",
        "AB",
        "_",
        "1",
        "中",
        "é",
        "e\u0301\u0323",
        "\u0301",
        "\ufdfa",
        "aA_é",
        "Aa中\u0301",
    ],
)
def test_terms_take_linear_time(pattern: str) -> None:
    """A text of one word, one run of marks or one identifier holds nobody up."""
    text = "aB" + pattern * (100_000 // len(pattern))
    start = time.process_time()
    pack_terms(text)

    assert time.process_time() - start < 2


def test_threads_share_the_tokenizer() -> None:
    """Each has a stemmer of its own."""
    texts = [f"{word}ing {word}ed" for word in map(str, range(1000, 1400))] + ["walking talked"] * 100
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(terms_of, texts * 3))

    assert found == [terms_of(text) for text in texts] * 3
