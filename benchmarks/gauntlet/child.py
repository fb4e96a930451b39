"""One cell of the table, in this process: `python -m benchmarks.gauntlet.child CASE LIBRARY`.

Prints one line of JSON at the end, and leaves at once: what a library has left behind shall not hang the process after
the verdict. A line `schedule N` is printed before each random schedule, so that a hang can be told by its number.
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
    """Ask, print the verdict, and leave."""
    logging.disable()  # the verdict is all that is read
    verdict, how = judge(case, library)
    print(json.dumps({"verdict": verdict, "how": how}), flush=True)
    os._exit(0)


def judge(case: Case, library: Library) -> tuple[Verdict, str]:
    """Ask once in the plain order, and once for each random schedule."""
    if not is_installed(library):
        return Verdict.MISSING, "python3 -m pip install 'asyncpool-toolkit[bench]'"
    try:
        library.load()
    except ImportError as error:  # of something that it needs
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
        return Verdict.WRONG, "it ends the program"
    except KeyboardInterrupt:
        os._exit(130)  # the parent says so
    except BaseException as error:
        return Verdict.WRONG, in_few_words(error)
    finally:
        loop.close()  # nothing is waited for: what the library has left behind is not asked about here
    return Verdict.HELD, ""


def _new_loop(case: Case) -> asyncio.AbstractEventLoop:
    if case.needs != "uvloop":
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


if __name__ == "__main__":
    main(CASES[sys.argv[1]], LIBRARIES[sys.argv[2]])
