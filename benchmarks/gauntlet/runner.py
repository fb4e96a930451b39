"""Runs each cell in a process with a time limit. `child.py` is that process."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncGenerator, Iterable, Sequence
from pathlib import Path

import asyncpool
from benchmarks.gauntlet.libraries import LIBRARIES
from benchmarks.gauntlet.verdicts import Cell, Verdict

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 9.0  # asyncpool abandons a job that ignores its cancellation after 5


async def run(pairs: Iterable[tuple[str, str]], *, seconds: float = SECONDS, at_once: int = 2) -> AsyncGenerator[Cell]:
    """Run each (case, library) in a process of its own, and give the cells in order.

    Cancel-safe: the processes are killed.
    """

    async def cell(pair: tuple[str, str]) -> Cell:
        case, library = pair
        command = [sys.executable, "-m", "benchmarks.gauntlet.child", case, library]
        verdict, how = await verdict_of(command, seconds * LIBRARIES[library].patience)
        return Cell(case, library, verdict, how)

    async with asyncpool.map(cell, pairs, workers=at_once) as cells:
        async for one in cells:
            yield one


async def verdict_of(command: Sequence[str], seconds: float) -> tuple[Verdict, str]:
    """Run a child until its verdict, its exit or the time limit."""
    child = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    lines: list[str] = []

    async def follow() -> int:
        assert child.stdout is not None
        async for line in child.stdout:
            lines.append(line.decode(errors="replace").strip())
        return await child.wait()

    try:
        async with asyncio.timeout(seconds):
            status = await follow()
    except TimeoutError:
        return Verdict.HANG, _progress(lines)
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return _last_word(lines, status)


def _last_word(lines: Sequence[str], status: int) -> tuple[Verdict, str]:
    try:
        answer = json.loads(lines[-1])
        return Verdict(answer["verdict"]), answer["how"]
    except (IndexError, KeyError, TypeError, ValueError):
        reason = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return Verdict.WRONG, f"the process ended: {reason}"


def _progress(lines: Sequence[str]) -> str:
    return lines[-1] if lines and lines[-1].startswith("schedule ") else ""
