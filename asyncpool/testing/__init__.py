"""Test asyncio code on virtual time: no waiting, deadlocks reported, schedules fuzzed by seed, leaks fail the test.

The package knows nothing about pools. It leaves to other tools: collecting tests (pytest), generating inputs
(Hypothesis), detecting blocking calls (blockbuster), and stopping tasks that run indefinitely (pytest-timeout).
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
