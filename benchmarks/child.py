"""`python -m benchmarks.child ORDER`: measure one contender once, and print one line of JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

from benchmarks.harness import run_on
from benchmarks.questions import QUESTIONS

__all__ = ["measure"]


def measure(order: dict[str, Any]) -> dict[str, Any]:
    """Measure what the order asks for, and return the figures or the reason for a failure."""
    question = QUESTIONS[order["question"]]
    try:
        figures = run_on(order["loop"], question.measure(order["contender"], **order["parameters"]))
    except MemoryError:
        return {"failed": f"needs more than {order['gibibytes']:g} GiB of memory"}
    except Exception as error:  # any failure is a result
        return {"failed": f"{type(error).__name__}: {error}"}
    return {"figures": figures}


def _limit_memory(gibibytes: float) -> None:
    try:
        import resource
    except ModuleNotFoundError:  # Windows has no memory limit, only the time limit applies
        return
    most = int(gibibytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    found = json.loads(sys.argv[1])
    if found["gibibytes"] is not None:
        _limit_memory(found["gibibytes"])
    print(json.dumps(measure(found)), flush=True)
