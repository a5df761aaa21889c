"""Plots beside RESULTS.md, of the numbers that stand in it."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import Latency

type Series = Mapping[str, Sequence[tuple[int, Latency]]]
"""Lines by name: the number of writers, and how long their operations took."""


def latency_by_writers(path: Path, title: str, series: Series) -> None:
    """Draw p50 and p99 over the number of writers, both axes logarithmic."""
    importlib.import_module("matplotlib").use("agg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for (name, points), colour in zip(series.items(), ("tab:blue", "tab:orange"), strict=False):
        writers = [count for count, _ in points]
        for label, style, values in (
            ("p50", "o-", [latency.p50 for _, latency in points]),
            ("p99", "o--", [latency.p99 for _, latency in points]),
        ):
            axes.plot(writers, [seconds * 1e3 for seconds in values], style, color=colour, label=f"{name}, {label}")
    ticks = sorted({count for points in series.values() for count, _ in points})
    axes.set(xscale="log", yscale="log", xlabel="writers", ylabel="ms for one append", title=title)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
