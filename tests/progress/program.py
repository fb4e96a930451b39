"""A program for the tests of terminals: python -m tests.progress.program HOW."""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import nullcontext
from typing import Any

from asyncpool import WorkerPool, drain_on_signal
from asyncpool.progress import summary, track


async def work(number: int) -> int:
    if number == 1:
        print("line of a job", flush=True)
        print("started", file=sys.stderr, flush=True)
        logging.warning("logged")
    await asyncio.sleep(0.01)
    if number % 10 == 5:
        raise ValueError(f"job {number % 4}")
    return number


async def main(how: str) -> None:
    async with WorkerPool(work, workers=4) as pool:
        jobs: Any = range(40) if how == "whole" else iter(range(1_000_000))
        with drain_on_signal(pool) if how == "drain" else nullcontext():
            try:
                async for outcome in track(pool.outcomes(jobs), total=None if how == "whole" else 1_000_000):
                    if how == "break" and outcome.job > 20:
                        break
                    if how == "error" and outcome.job > 20:
                        raise RuntimeError("the reader has failed")
            finally:
                print("left the loop", flush=True)
    print(summary(pool), flush=True)
    logging.warning("logged at the end")


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    try:
        asyncio.run(main(sys.argv[1]))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
