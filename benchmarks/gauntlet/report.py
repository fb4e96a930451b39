"""The results as JSON, as lines for the terminal, and as the document."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.gauntlet.libraries import LIBRARIES
from benchmarks.gauntlet.runner import ROOT
from benchmarks.gauntlet.verdicts import Cell, Verdict

RESULTS = ROOT / "benchmarks" / "results" / "gauntlet.json"
DOCUMENT = ROOT / "docs" / "gauntlet.md"


def as_text(cells: Sequence[Cell]) -> str:
    """How many of its cells each library holds."""
    names = list(dict.fromkeys(cell.library for cell in cells))
    width = max(map(len, names), default=0)
    return "\n".join(f"{name:<{width}}  {_total(cell for cell in cells if cell.library == name)}" for name in names)


def _total(cells: Iterable[Cell]) -> str:
    verdicts = [cell.verdict for cell in cells]
    tried = [verdict for verdict in verdicts if verdict not in (Verdict.LACKS, Verdict.MISSING)]
    return f"{tried.count(Verdict.HELD)} of {len(tried)}"
