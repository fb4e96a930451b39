"""A minimal pool: 5 workers, 20 jobs, results as they complete.

    python -m examples.basic_pool

The equivalent Go program has a channel of jobs, five goroutines, a channel of results and a WaitGroup. Here the range
replaces the channel of jobs, the stream replaces the channel of results, and leaving the block waits for the workers.
"""

import asyncio
import random
import sys

from asyncpool import WorkerPool, current_job
from asyncpool.progress import summary
from examples.command_line import finish_plain


async def square(number: int) -> str:
    """Work for a while, then return a line with the worker and the result."""
    await asyncio.sleep(random.uniform(0.05, 0.25))
    return f"worker {current_job().worker}: {number} squared is {number * number}"


async def main() -> None:
    """Run 20 jobs on 5 workers, print each result as it completes, and print a summary."""
    async with WorkerPool(square, workers=5) as pool:
        async for outcome in pool.outcomes(range(1, 21)):
            print(outcome.unwrap(), flush=True)
    print(summary(pool))


if __name__ == "__main__":
    sys.exit(finish_plain("basic_pool", lambda: asyncio.run(main())))
