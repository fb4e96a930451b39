"""A plot of the traces of a scenario: workers, queue, throughput and running time on the same time axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.scaling.simulate import Result
from benchmarks.scaling.totals import Sample

__all__ = ["plot"]

_MOST_POINTS = 240
_COLOURS = ("#999999", "#d95f02", "#1b6ca8", "#2a9d4e", "#7b3fa0")
_PANELS: tuple[tuple[str, Callable[[Sample], float]], ...] = (
    ("workers", lambda sample: sample.wanted),
    ("jobs waiting", lambda sample: sample.queued),
    ("jobs per second", lambda sample: sample.throughput),
    ("median running, ms", lambda sample: sample.median_running * 1e3),
)


def plot(name: str, results: Mapping[str, Result], folder: Path) -> Path:
    """Draw the traces of one scenario into `folder/name.svg`, one line per contender. The output is deterministic.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    # Text as text keeps the file small, and the salt makes the ids in it deterministic.
    settings: Any = {"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 9, "path.simplify_threshold": 0.5}
    with mpl.rc_context(settings):
        figure, panels = pyplot.subplots(len(_PANELS), 1, sharex=True, figsize=(8, 8), layout="constrained")
        for panel, (label, value) in zip(panels, _PANELS, strict=True):
            for colour, (contender, result) in zip(_COLOURS, results.items(), strict=False):
                times, values = _thin(result.trace, value)
                panel.plot(times, values, color=colour, linewidth=1.1, label=contender)
            for since, _ in next(iter(results.values())).scenario.phases[1:]:
                panel.axvline(since, color="#cccccc", linewidth=0.8, linestyle=":")
            panel.set_ylabel(label)
            panel.set_ylim(bottom=0)
            panel.grid(axis="y", color="#eeeeee")
            panel.spines[["top", "right"]].set_visible(False)
        first = next(iter(results.values()))
        panels[0].set_title(f"{name}: {first.capacity}", loc="left", fontsize=9)
        panels[0].legend(loc="lower left", bbox_to_anchor=(0.0, 1.12), ncols=len(results), frameon=False)
        panels[-1].set_xlabel("seconds")
        path = folder / f"{name.replace(' ', '-')}.svg"
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    return path


def _thin(trace: Sequence[Sample], value: Callable[[Sample], float]) -> tuple[list[float], list[float]]:
    """Return times and values, averaged over neighbours to get at most `_MOST_POINTS` points."""
    step = -(-len(trace) // _MOST_POINTS)
    groups = [trace[at : at + step] for at in range(0, len(trace), step)]
    return [round(group[-1].at, 3) for group in groups], [round(fmean(map(value, group)), 3) for group in groups]
