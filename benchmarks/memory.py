"""How much memory a long run takes. Each run is a process of its own: memory that was freed hides what comes after."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, Answer, Budget, Measurement, Settings
from benchmarks.rivals import do_nothing, gather, outcomes

__all__ = ["memory", "resident"]

WORKERS = 100
_WARM_UP = 10_000
_SAMPLE_EVERY = 1_000


def memory(settings: Settings) -> Answer:
    """Measure by how much a process grows while a pool does a million jobs; and while gather does a tenth of them."""
    jobs = settings.jobs or 1_000_000
    rounds = settings.rounds or 3
    measurements = [
        _grow("pool.outcomes", jobs, rounds, settings, Budget(limit=16.0, of="value")),
        _grow("asyncio.gather", max(1, jobs // 10), rounds, settings, None),
    ]
    return Answer(
        title="Memory: growth of the process over no-op jobs from a generator, all outcomes read",
        measurements=measurements,
    )


def _grow(contender: str, jobs: int, rounds: int, settings: Settings, budget: Budget | None) -> Measurement:
    command = [sys.executable, "-m", "benchmarks.memory", contender, str(jobs), settings.loop]
    values: list[float] = []
    for _ in range(rounds):
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        values.append(float(json.loads(done.stdout)) / 2**20)
    return Measurement(case=f"{jobs:,} jobs", contender=contender, unit="MiB", values=values, budget=budget)


# -- In the process that is measured ----------------------------------------------------------------------------------


def resident() -> int:
    """Return the bytes of memory that the process holds now; where the system does not tell, the most it ever held."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return _most_resident()
    import resource

    return pages * resource.getpagesize()


def _most_resident() -> int:
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


class _Growth:
    """A handler that looks at the memory now and then: from inside the jobs, all that is alive with them is seen."""

    def __init__(self) -> None:
        gc.collect()
        self._before, self._most_before = resident(), _most_resident()
        self._peak = self._before

    async def __call__(self, job: int) -> int:
        if job % _SAMPLE_EVERY == 0:
            self._peak = max(self._peak, resident())
        return job

    def bytes(self) -> int:
        """Return the growth, up to the highest peak that is known."""
        most = _most_resident()
        peak = max(self._peak, resident(), most if most > self._most_before else 0)
        return peak - self._before


def _main(contender: str, jobs: int, loop: str) -> None:
    settings = Settings(loop="uvloop" if loop == "uvloop" else "asyncio")

    async def do(handler: Any, count: int) -> float:
        source = (job for job in range(count))
        work: Coroutine[Any, Any, int]
        work = gather(handler, source) if contender == "asyncio.gather" else outcomes(handler, source, WORKERS)
        return float(await work)

    settings.run(do(do_nothing, min(jobs, _WARM_UP)))
    growth = _Growth()
    settings.run(do(growth, jobs))
    print(json.dumps(growth.bytes()))


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
