"""Tests on virtual time: no waiting, deadlocks reported, schedules fuzzed by seed, and leaks fail the test.

It knows nothing of pools, and leaves to others: collecting tests (pytest), inventing inputs (Hypothesis),
blocking calls (blockbuster), and tasks that are busy for ever (pytest-timeout).
"""

from asyncpool.testing.cancellation import CancelSweepResult, cancel_at
from asyncpool.testing.fuzzing import fuzzing_task_factory
from asyncpool.testing.manual_handler import ManualHandler
from asyncpool.testing.runner import LeakError, run
from asyncpool.testing.settling import settle
from asyncpool.testing.virtual_time import DeadlockError, VirtualTimeLoop

__all__ = [
    "CancelSweepResult",
    "DeadlockError",
    "LeakError",
    "ManualHandler",
    "VirtualTimeLoop",
    "cancel_at",
    "fuzzing_task_factory",
    "run",
    "settle",
]
