"""Retries with backoff, an alert for each job that failed permanently, and a replay: 3 workers, 10 jobs, 3 attempts.

    python -m examples.retries_and_dead_letters

The equivalent Go program has a channel of jobs to retry, a goroutine that sleeps through their backoffs, one after the
other, and a goroutine that monitors a channel of dead letters. Here a job in its backoff does not occupy a worker, and
the monitor is a loop over `watch()`.
"""

import asyncio
import random
import sys

from asyncpool import DeadLetters, Retry, WorkerPool, current_job
from asyncpool.progress import summary
from examples.command_line import finish_plain

offline = {4, 8}
"""The destinations that cannot be reached until somebody repairs them. The others are only unreliable."""


async def deliver(number: int) -> str:
    """Work for a while, and fail if the destination is offline, else in 30% of the attempts."""
    await asyncio.sleep(0.05)
    if number in offline or random.random() < 0.3:
        raise ConnectionError(f"attempt {current_job().attempt}: no connection")
    return f"delivered in attempt {current_job().attempt}"


async def alert(letters: DeadLetters[int]) -> None:
    """Print each permanent failure as it happens, until the pool closes."""
    async for letter in letters.watch():
        print(f"ALERT: job {letter.job} failed after {letter.attempts} attempts: {letter.error_type}: {letter.error}")


async def main() -> None:
    """Run 10 jobs on 3 workers, then replay those that failed permanently."""
    letters: DeadLetters[int] = DeadLetters()
    monitor = asyncio.create_task(alert(letters))
    retry = Retry(attempts=3, backoff=0.1, on=ConnectionError)
    async with WorkerPool(deliver, workers=3, retry=retry, dead_letters=letters) as pool:
        async for outcome in pool.outcomes(range(1, 11)):
            print(outcome, flush=True)
        print(f"Repaired the destinations {sorted(offline)}")
        offline.clear()
        print(f"Replaying {await letters.replay(pool)} dead letters")
        await pool.join()
    await monitor
    print(f"{len(letters)} dead letters left")
    print(summary(pool))


if __name__ == "__main__":
    sys.exit(finish_plain("retries_and_dead_letters", lambda: asyncio.run(main())))
