"""Runs one cell of the table in this process: `python -m benchmarks.gauntlet.child CASE LIBRARY`.

It prints one line of JSON and exits immediately, because tasks left by a library must not hang the process after the
verdict. Before each random schedule it prints a line `schedule N`, which identifies the schedule of a hang.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys

from asyncpool.testing import fuzzing_task_factory
from benchmarks.gauntlet.adapter import Library
from benchmarks.gauntlet.cases import CASES, Case, is_possible
from benchmarks.gauntlet.libraries import LIBRARIES, is_installed
from benchmarks.gauntlet.verdicts import Lacks, Verdict, Wrong, in_few_words


def main(case: Case, library: Library) -> None:
    """Run the cell, print the verdict, and exit."""
    logging.disable()  # the parent reads only the verdict
    verdict, how = judge(case, library)
    print(json.dumps({"verdict": verdict, "how": how}), flush=True)
    os._exit(0)


def judge(case: Case, library: Library) -> tuple[Verdict, str]:
    """Run the case once in plain order, and once for each random schedule."""
    if not is_installed(library):
        return Verdict.MISSING, "python3 -m pip install 'asyncpool-toolkit[bench]'"
    try:
        library.load()
    except ImportError as error:  # of a dependency
        return Verdict.MISSING, in_few_words(error)
    if not is_possible(case):
        return Verdict.MISSING, f"python3 -m pip install {case.needs}"
    for seed in (None, *range(case.schedules)):
        if seed is not None:
            print(f"schedule {seed}", flush=True)
        verdict, how = _judge_once(case, library, seed)
        if verdict is not Verdict.HELD:
            return verdict, how if seed is None else f"{how} (schedule {seed})"
    return Verdict.HELD, ""


def _judge_once(case: Case, library: Library, seed: int | None) -> tuple[Verdict, str]:
    loop = _new_loop(case)
    loop.set_exception_handler(lambda _loop, _context: None)
    if seed is not None:
        loop.set_task_factory(fuzzing_task_factory(seed))
    try:
        loop.run_until_complete(case.ask(library))
    except Lacks as lacks:
        return Verdict.LACKS, str(lacks)
    except Wrong as wrong:
        return Verdict.WRONG, str(wrong)
    except SystemExit:
        return Verdict.WRONG, "the program exits"
    except KeyboardInterrupt:
        os._exit(130)  # the parent reports it
    except BaseException as error:
        return Verdict.WRONG, in_few_words(error)
    finally:
        loop.close()  # waits for nothing: tasks left by the library do not matter here
    return Verdict.HELD, ""


def _new_loop(case: Case) -> asyncio.AbstractEventLoop:
    if case.needs != "uvloop":
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


if __name__ == "__main__":
    main(CASES[sys.argv[1]], LIBRARIES[sys.argv[2]])
