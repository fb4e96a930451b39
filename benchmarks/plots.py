"""The plots of the report. The same figures give the same file, and each file has a digest of its figures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from benchmarks.harness import Answer, Measurement
from benchmarks.questions.cost import HEADLINE
from benchmarks.questions.http import NAIVE
from benchmarks.rivals import OURS, REFERENCE

__all__ = ["PLOTS", "Plot", "digest"]

Data: TypeAlias = dict[str, Any]

_OURS, _OTHERS, _BASE = "#1b6ca8", "#b8c4ce", "#d95f02"
_LINES = {
    REFERENCE: _BASE,
    "gather + Semaphore": "#7b3fa0",
    "asyncio-pool": "#c2963b",
    "aqute": "#2a9d4e",
    "asyncio.Queue workers": "#777777",
    "pool.outcomes": _OURS,
}


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot of the answer to one question."""

    question: str
    title: str
    data: Callable[[Answer], Data]
    """Selects the figures, rounded as they are drawn."""
    _draw: Callable[[Any, Data], Any]

    def draw(self, answer: Answer, path: Path) -> None:
        """Write the plot as SVG. Raises `ModuleNotFoundError` without matplotlib."""
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot

        data = self.data(answer)
        # Text stays text, which is small. The salt makes the ids reproducible.
        settings: Any = {"svg.hashsalt": path.stem, "svg.fonttype": "none", "font.size": 9}
        with mpl.rc_context(settings):
            figure = self._draw(pyplot, data)
            figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None, "Description": digest(data)})
            pyplot.close(figure)


def digest(data: Data) -> str:
    """Return a name for the figures, which is written into the plot of them."""
    return f"figures {hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]}"


def _medians(several: Sequence[Measurement], unit: str) -> dict[str, float]:
    return {one.contender: float(f"{median(one.figures[unit]):.4g}") for one in several if one.figures.get(unit)}


# -- Cost per job ------------------------------------------------------------------------------------------------------


def _costs(answer: Answer) -> Data:
    return {
        name: _medians(several, "µs/job") for name, several in answer.cases.items() if f" {HEADLINE} workers" in name
    }


def _draw_costs(pyplot: Any, data: Data) -> Any:
    rows = max(map(len, data.values()))
    figure, panels = pyplot.subplots(1, len(data), figsize=(10, 0.6 + 0.24 * rows), layout="constrained", squeeze=False)
    for panel, (name, costs) in zip(panels[0], data.items(), strict=True):
        ordered = sorted(costs.items(), key=lambda item: -item[1])
        labels, values = [label for label, _ in ordered], [value for _, value in ordered]
        bars = panel.barh(labels, values, color=[_colour(label) for label in labels], height=0.72)
        panel.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
        panel.set_xlim(right=max(values, default=1.0) * 1.15)
        panel.set_xlabel("µs per job")
        _tidy(panel, name)
    return figure


def _colour(contender: str) -> str:
    return _OURS if contender in OURS else _BASE if contender == REFERENCE else _OTHERS


# -- Growth ------------------------------------------------------------------------------------------------------------


_LEAST = {"MiB": 0.1, "µs/job": 0.0}


def _growth(answer: Answer) -> Data:
    lines: dict[str, dict[str, list[tuple[int, float]]]] = {"MiB": {}, "µs/job": {}}
    for name, several in answer.cases.items():
        jobs = int(name.split()[0].replace(",", ""))
        for unit, by_contender in lines.items():
            for contender, value in _medians(several, unit).items():
                if contender in _LINES:
                    by_contender.setdefault(contender, []).append((jobs, value))
    return lines


def _draw_growth(pyplot: Any, data: Data) -> Any:
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    titles = {"MiB": "memory growth in MiB, logarithmic (0.1: at most that)", "µs/job": "µs per job"}
    for panel, (unit, lines) in zip(panels, data.items(), strict=True):
        for contender, points in lines.items():
            jobs, values = [at for at, _ in points], [max(value, _LEAST[unit]) for _, value in points]
            width = 2.4 if contender in OURS else 1.3
            panel.plot(jobs, values, "o-", color=_LINES[contender], linewidth=width, markersize=3.5, label=contender)
        panel.set_xscale("log")
        panel.set_xlabel("jobs")
        if unit == "MiB":
            panel.set_yscale("log")
        else:
            panel.set_ylim(bottom=0)
        _tidy(panel, titles[unit])
    panels[1].legend(frameon=False, fontsize=8)
    return figure


# -- HTTP --------------------------------------------------------------------------------------------------------------


def _http(answer: Answer) -> Data:
    return {
        name: {unit: _medians(several, unit) for unit in ("requests/s", "errors", "peak connections")}
        for name, several in answer.cases.items()
    }


def _draw_http(pyplot: Any, data: Data) -> Any:
    figure, panels = pyplot.subplots(len(data), 3, figsize=(10, 1.8 * len(data)), layout="constrained", squeeze=False)
    for row, (name, units) in zip(panels, data.items(), strict=True):
        for column, (panel, (unit, values)) in enumerate(zip(row, units.items(), strict=True)):
            labels = list(values)[::-1]
            colours = [_BASE if label == NAIVE else _colour(label) for label in labels]
            bars = panel.barh(labels, [values[label] for label in labels], color=colours, height=0.72)
            panel.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
            panel.set_xlim(0, max((1.0, *values.values())) * 1.3)
            panel.set_xticks([])
            if column:
                panel.set_yticks([])
            _tidy(panel, f"{'' if column else name}\n{unit}")
    return figure


def _tidy(panel: Any, title: str) -> None:
    panel.set_title(title, loc="left", fontsize=9)
    panel.spines[["top", "right"]].set_visible(False)


PLOTS: Mapping[str, Plot] = {
    "cost": Plot("cost", "Cost per job of all contenders", _costs, _draw_costs),
    "growth": Plot("growth", "Memory and cost from 10,000 to 1,000,000 jobs", _growth, _draw_growth),
    "http": Plot("http", "Throughput, errors and connections of 5,000 requests", _http, _draw_http),
}
