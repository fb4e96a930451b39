"""How much the random tests of the laws may try: one place, read once.

The default is for each commit. `ASYNCPOOL_TEST_BUDGET=long` multiplies it, for a night; `short` is a part of it, for
a Python between two others that are tested with the default.
"""

from __future__ import annotations

import os

_BUDGET = os.environ.get("ASYNCPOOL_TEST_BUDGET", "")
IS_LONG = _BUDGET == "long"
IS_SHORT = _BUDGET == "short"

# How many random schedules each scenario runs under, by the way in which the loop makes tasks (test_schedules.py).
SCHEDULES = {"default": 84, "factory": 18, "wrapping": 18, "eager": 10}
# And how many in which the log, the reprs of jobs and the errors are hostile: these cost more, because all is logged.
HOSTILE_SCHEDULES = {"default": 8, "factory": 2, "wrapping": 2, "eager": 2}
# How many random programs the state machine runs, and how many steps each has (test_machine.py).
MACHINE_EXAMPLES = 200
MACHINE_STEPS = 40
# How many programs for pools with all options (test_machine_of_options.py).
OPTIONS_EXAMPLES = 100
# How many random batches are run with a journal (test_journals.py).
BATCHES = 40

if IS_SHORT:
    BATCHES //= 4
    SCHEDULES = {mode: seeds // 6 for mode, seeds in SCHEDULES.items()}
    HOSTILE_SCHEDULES = {mode: max(1, seeds // 4) for mode, seeds in HOSTILE_SCHEDULES.items()}
    MACHINE_EXAMPLES //= 4
    OPTIONS_EXAMPLES //= 4
if IS_LONG:
    BATCHES *= 25
    SCHEDULES = {mode: 25 * seeds for mode, seeds in SCHEDULES.items()}
    HOSTILE_SCHEDULES = {mode: 25 * seeds for mode, seeds in HOSTILE_SCHEDULES.items()}
    MACHINE_EXAMPLES *= 25
    OPTIONS_EXAMPLES *= 25
    MACHINE_STEPS = 80
