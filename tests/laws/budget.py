"""How much the random tests of the laws may try: one place, read once.

`ASYNCPOOL_TEST_BUDGET=long` multiplies it, for a night; the default is for each commit.
"""

from __future__ import annotations

import os

IS_LONG = os.environ.get("ASYNCPOOL_TEST_BUDGET") == "long"

# How many random schedules each scenario runs under, by the way in which the loop makes tasks (test_schedules.py).
SCHEDULES = {"default": 260, "factory": 60, "wrapping": 60, "eager": 60}
# How many random programs the state machine runs, and how many steps each has (test_machine.py).
MACHINE_EXAMPLES = 300
MACHINE_STEPS = 40

if IS_LONG:
    SCHEDULES = {mode: 25 * seeds for mode, seeds in SCHEDULES.items()}
    MACHINE_EXAMPLES *= 25
    MACHINE_STEPS = 80
