"""asyncpool: worker pools for asyncio that lose no job, do not hang, and cost less than one task per job.

Most programs need only `asyncpool.map`, `asyncpool.outcomes` and `WorkerPool`; `__all__` lists the rest. See
docs/semantics.md for the guarantees and docs/architecture.md for the implementation.
"""

from asyncpool._version import __version__
from asyncpool.batching import Batches, batches
from asyncpool.breaker import Breaker
from asyncpool.dead_letters.file import DeadLetterFile
from asyncpool.dead_letters.letter import DeadLetter, DeadLetterSink
from asyncpool.dead_letters.memory import DeadLetters
from asyncpool.errors import (
    DeadlineExceeded,
    EngineLost,
    ErrorFilter,
    JobCancelled,
    JobCrashed,
    JobExpired,
    JobTimeout,
    JournalError,
    Permanent,
    PoolClosed,
    PoolDeadlock,
    PoolError,
    PoolNotStarted,
    PoolReused,
    PoolStateError,
    ProcessDied,
    ProcessLost,
    QueueFull,
    RemoteError,
    ResourceDied,
    ResourceTimeout,
    RetryAdvice,
    RetryAfter,
    SourceCrashed,
    StreamClosed,
    TooManyFailures,
    WeightTooLarge,
    WrongLoop,
)
from asyncpool.events import Event, Observer
from asyncpool.groups import Group
from asyncpool.jobs import CurrentJob, JobHandle, current_job
from asyncpool.journal.entries import FailedJob, JournalCounts
from asyncpool.journal.journal import Journal
from asyncpool.limits.concurrency import ConcurrencyLimit, KeyedConcurrencyLimit
from asyncpool.limits.rate import KeyedRateLimit, RateLimit
from asyncpool.offload import Offloaded, offload
from asyncpool.oneshot import map, outcomes
from asyncpool.outcomes import Cancelled, CancelReason, Failed, Outcome, ShutdownReport, Succeeded, Unfinished
from asyncpool.pool import WorkerPool
from asyncpool.processes import Processes
from asyncpool.resources import Resource
from asyncpool.retry import Retry, RetryBudget
from asyncpool.scaling.adaptive import Adaptive
from asyncpool.scaling.autoscale import AutoScale
from asyncpool.scaling.function import FunctionPolicy
from asyncpool.scaling.policy import Decision, FixedSize, PoolLoad, ScalingPolicy
from asyncpool.scaling.sizing import recommended_workers
from asyncpool.signals import drain_on_signal
from asyncpool.snapshots import QueuedJob, RunningJob
from asyncpool.stats import Distribution, PoolStats, ProcessStats, Resize
from asyncpool.streams import Stream

__all__ = [
    "Adaptive",
    "AutoScale",
    "Batches",
    "Breaker",
    "CancelReason",
    "Cancelled",
    "ConcurrencyLimit",
    "CurrentJob",
    "DeadLetter",
    "DeadLetterFile",
    "DeadLetterSink",
    "DeadLetters",
    "DeadlineExceeded",
    "Decision",
    "Distribution",
    "EngineLost",
    "ErrorFilter",
    "Event",
    "Failed",
    "FailedJob",
    "FixedSize",
    "FunctionPolicy",
    "Group",
    "JobCancelled",
    "JobCrashed",
    "JobExpired",
    "JobHandle",
    "JobTimeout",
    "Journal",
    "JournalCounts",
    "JournalError",
    "KeyedConcurrencyLimit",
    "KeyedRateLimit",
    "Observer",
    "Offloaded",
    "Outcome",
    "Permanent",
    "PoolClosed",
    "PoolDeadlock",
    "PoolError",
    "PoolLoad",
    "PoolNotStarted",
    "PoolReused",
    "PoolStateError",
    "PoolStats",
    "ProcessDied",
    "ProcessLost",
    "ProcessStats",
    "Processes",
    "QueueFull",
    "QueuedJob",
    "RateLimit",
    "RemoteError",
    "Resize",
    "Resource",
    "ResourceDied",
    "ResourceTimeout",
    "Retry",
    "RetryAdvice",
    "RetryAfter",
    "RetryBudget",
    "RunningJob",
    "ScalingPolicy",
    "ShutdownReport",
    "SourceCrashed",
    "Stream",
    "StreamClosed",
    "Succeeded",
    "TooManyFailures",
    "Unfinished",
    "WeightTooLarge",
    "WorkerPool",
    "WrongLoop",
    "__version__",
    "batches",
    "current_job",
    "drain_on_signal",
    "map",
    "offload",
    "outcomes",
    "recommended_workers",
]
