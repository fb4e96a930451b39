"""Ask a question on the terminal, while the event loop goes on."""

from __future__ import annotations

import asyncio
import os
import sys

__all__ = ["ask", "can_ask"]


def can_ask() -> bool:
    """Return whether there is a terminal to ask on."""
    # The event loop of Windows cannot wait for a terminal.
    return os.name == "posix" and sys.stdin.isatty() and sys.stdout.isatty()


async def ask(question: str) -> bool:
    """Print a question, and wait for the answer. Only `y` and `yes` return True. Cancel-safe."""
    print(f"{question} [y/N]", flush=True)
    has_line = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin, has_line.set)  # not a thread: that could not be cancelled
    try:
        await has_line.wait()
    finally:
        loop.remove_reader(sys.stdin)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
