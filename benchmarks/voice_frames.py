"""What a recorder costs a voice pipeline: how long frames take through Pipecat, with a recorder and without one.

A frame of audio every 20 ms passes the pipeline while a user and a bot take turns.
"""

import asyncio
import importlib
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from loguru import logger
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    EndFrame,
    Frame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    OutputAudioRawFrame,
    ProposedUserStartedSpeakingFrame,
    ProposedUserStoppedSpeakingFrame,
    TranscriptionFrame,
    TTSTextFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair, LLMUserAggregatorParams
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.turns.user_turn_strategies import ExternalUserTurnStrategies
from pipecat.workers.runner import WorkerRunner

from benchmarks.cores import OTHERS, on
from benchmarks.measure import Plan, Run, percentile, say
from benchmarks.postgres_server import Server, free_port, fresh_database, serving
from benchmarks.results import Latency, Report, Row
from chatkeep import Recorder, open_store
from chatkeep.integrations.pipecat import attach

HERE = Path(__file__).parent
FRAME_SECONDS = 0.02
NOISE = b"\1\0" * 320
WITHOUT, AGAIN = "not recorded", "not recorded, once more"
UP, DOWN = "recorded, database there", "recorded, database down"
SIDES = {UP: "tab:green", DOWN: "tab:blue", AGAIN: "tab:gray", WITHOUT: "tab:orange"}
"""What is measured, and its colour."""
NOTE = (
    "Voice frames: Pipecat, a frame of audio every 20 ms through both aggregators, two turns a second, each with 8"
    " words; the time of a frame is from the pipeline's first processor to its last one. PostgreSQL is kept off one"
    " core. What is not recorded is measured twice: how far the two lie apart is the machine's doing. Plot:"
    " voice_frames.png."
)


def run(plan: Plan) -> Report:
    """Measure all sides, in another order each round, and draw them."""
    logger.remove()
    seconds, rounds = (3.0, 2) if plan.quick else (5.0, 12)  # short ones: the machine's own pace drifts
    shuffle = random.Random(1).sample
    runs: dict[str, list[Run]] = {side: [] for side in SIDES}
    with ExitStack() as stack:
        with on(OTHERS):
            server = stack.enter_context(serving())
        for number in range(rounds):
            say(f"  voice frames, round {number + 1}")
            for side in shuffle([*SIDES], len(SIDES)):
                with plan.fresh() as folder:
                    runs[side].append(asyncio.run(_round(server, folder, seconds, side)))
    if not plan.quick:
        _draw(HERE / "voice_frames.png", runs)
    return Report(
        [_row(share, side, runs) for share in (0.5, 0.99) for side in (UP, DOWN, AGAIN)],
        [Latency.of(f"voice frame, {side}", runs[side]) for side in SIDES],
        notes=[NOTE],
    )


def _row(share: float, side: str, runs: dict[str, list[Run]]) -> Row:
    """How a percentile of a side compares with that of what is not recorded, round by round."""
    ours, theirs = (f"{percentile(runs[each], share) * 1e3:.2f} ms" for each in (side, WITHOUT))
    rounds = zip(runs[side], runs[WITHOUT], strict=True)
    values = [percentile([one], share) / percentile([other], share) for one, other in rounds]
    return Row(f"voice frame, p{share * 100:g}, {side}", WITHOUT, ours, theirs, values)


async def _round(server: Server, folder: Path, seconds: float, side: str) -> Run:
    pair = LLMContextAggregatorPair(
        LLMContext(), user_params=LLMUserAggregatorParams(user_turn_strategies=ExternalUserTurnStrategies())
    )
    async with AsyncExitStack() as stack:
        if side in (UP, DOWN):
            await stack.enter_async_context(_recorded(server, folder, pair, up=side == UP))
        first, last = _First(), _Last()
        worker = PipelineWorker(
            Pipeline([first, pair.user(), pair.assistant(), last]), enable_rtvi=False, cancel_on_idle_timeout=False
        )
        started = asyncio.Event()
        worker.add_event_handler("on_pipeline_started", lambda *_: started.set())
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(worker)
        running = asyncio.create_task(runner.run())
        await started.wait()
        talking = asyncio.create_task(_talk(worker, first))
        began = time.perf_counter()
        while (moment := time.perf_counter()) - began < seconds:
            await worker.queue_frame(OutputAudioRawFrame(NOISE, 16_000, 1))
            await asyncio.sleep(max(0.0, FRAME_SECONDS - (time.perf_counter() - moment)))
        talking.cancel()
        await worker.queue_frame(EndFrame())
        await running
    return Run(len(last.took), sum(last.took), sorted(last.took))


@asynccontextmanager
async def _recorded(server: Server, folder: Path, pair: LLMContextAggregatorPair, *, up: bool) -> AsyncIterator[None]:
    """Record what is said in a pipeline, to a database that is there, or to none."""
    async with fresh_database(server) as there:
        url = there if up else f"postgresql://nobody@127.0.0.1:{free_port()}/nothing"
        async with open_store(url, migrate=up) as store:
            recorder = Recorder(store, folder / "journal", create_missing=True)
            await recorder.__aenter__()
            attach(pair, recorder, owner="ada", conversation_id=UUID(int=7))
            yield
            stats = recorder.stats()
            if not stats.recorded or bool(stats.sent) != up:
                raise RuntimeError(f"it is not so that all was recorded, and sent where it could be: {stats}")
            await recorder.aclose(timeout=1 if up else 0.1)


async def _talk(worker: PipelineWorker, first: "_First") -> None:
    """The user and the bot take turns."""
    number = 0
    while True:
        number += 1
        await worker.queue_frames([VADUserStartedSpeakingFrame(start_secs=0.2), ProposedUserStartedSpeakingFrame()])
        await asyncio.sleep(0.2)
        said = TranscriptionFrame(f"This is what the user says, number {number}", "ada", "")
        await worker.queue_frames(
            [VADUserStoppedSpeakingFrame(stop_secs=0.2), said, ProposedUserStoppedSpeakingFrame()]
        )
        await asyncio.sleep(0.2)
        words = [TTSTextFrame(word, text_type="word") for word in f"And this is what the bot answers {number}".split()]
        for frame in (LLMFullResponseStartFrame(), BotStartedSpeakingFrame(), *words, BotStoppedSpeakingFrame(),
                      LLMFullResponseEndFrame()):  # fmt: skip
            await first.queue_frame(frame)
            await asyncio.sleep(0.05)


class _First(FrameProcessor):
    """Notes when a frame of audio came."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, OutputAudioRawFrame):
            frame.metadata["came"] = time.perf_counter()
        await self.push_frame(frame, direction)


class _Last(FrameProcessor):
    """Notes how long it took."""

    def __init__(self) -> None:
        super().__init__()
        self.took: list[float] = []

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, OutputAudioRawFrame):
            self.took.append(time.perf_counter() - frame.metadata["came"])
        await self.push_frame(frame, direction)


def _draw(path: Path, runs: dict[str, list[Run]]) -> None:
    """The time that a share of the frames takes at least: of all frames of a side, and between which its rounds lie."""
    importlib.import_module("matplotlib").use("agg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    shares = [10 ** (-2.3 * place / 100) for place in range(101)]
    for side, colour in SIDES.items():
        rounds = runs[side]
        each = [[percentile([one], 1 - share) * 1e3 for one in rounds] for share in shares]
        axes.fill_betweenx(shares, [min(times) for times in each], [max(times) for times in each], color=colour,
                           alpha=0.2, lw=0)  # fmt: skip
        axes.plot([percentile(rounds, 1 - share) * 1e3 for share in shares], shares, color=colour, label=side)
    axes.set(xscale="log", yscale="log", xlabel="ms that a frame takes through the pipeline",
             ylabel="share of frames that take longer",
             title=f"Voice frames: all {len(runs[WITHOUT])} rounds of a side, and between which they lie")  # fmt: skip
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
