"""Describe in text where tasks wait.

When such a report is needed is decided in `virtual_time.py` (deadlocks, `settle`) and `runner.py` (leaks).
"""

from __future__ import annotations

import asyncio
import linecache
from types import FrameType
from typing import Any, cast

__all__ = ["task_report"]


def task_report(tasks: set[asyncio.Task[Any]]) -> str:
    """Return one paragraph per task, sorted by name: the name and the lines at which it waits, outermost first."""
    lines: list[str] = []
    for task in sorted(tasks, key=lambda task: task.get_name()):
        lines.append(f"  task {task.get_name()!r} waits at")
        awaited: Any = task.get_coro()
        while awaited is not None:
            kind = next((kind for kind in ("cr", "gi", "ag") if hasattr(awaited, f"{kind}_frame")), "")
            if frame := cast("FrameType | None", getattr(awaited, f"{kind}_frame", None)):
                file, line = frame.f_code.co_filename, frame.f_lineno
                source = linecache.getline(file, line).strip()
                lines.append(f"    {file}:{line} in {frame.f_code.co_name}: {source}")
            awaited = getattr(awaited, "gi_yieldfrom" if kind == "gi" else f"{kind}_await", None)
    return "\n".join(lines) or "  (none)"
