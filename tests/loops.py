"""The event loops that the examples must run on, for tests that start a program in a process of its own."""

from __future__ import annotations

import importlib.util
import sys

import pytest

__all__ = ["LOOPS", "command_on"]

LOOPS = [
    "asyncio",
    pytest.param("uvloop", marks=pytest.mark.skipif(not importlib.util.find_spec("uvloop"), reason="needs uvloop")),
]

_ON_UVLOOP = """
import asyncio, runpy, sys, uvloop
asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def command_on(loop: str, module: str, *options: str) -> list[str]:
    """Return the command that runs a module on this loop, with these options of the interpreter."""
    start = ["-m"] if loop == "asyncio" else ["-c", _ON_UVLOOP]
    return [sys.executable, *options, *start, module]
