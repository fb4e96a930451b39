"""Explanations of single cells: a note for a case and a library, or for the case and ALL.

A note starts with "By design" if the library documents the behaviour. The notes refer to the versions of the saved
results. A note to a cell that is held is a mistake, which a test finds.
"""

from __future__ import annotations

ALL = "*"

NOTES: dict[tuple[str, str], str] = {
    ("failure-is-reported", "pypeln"): "A failed task is dropped before its error is read.",
    ("job-awaits-what-was-cancelled", "Queue workers"): "`except Exception` does not catch it, so the worker ends.",
    ("job-awaits-what-was-cancelled", "aqute"): "By design: it fails the whole run.",
    ("job-awaits-what-was-cancelled", "streamable"): "`catch` is for `Exception`.",
    ("stray-cancel-is-reported", "gather + Semaphore"): "By design of `asyncio.gather`.",
    ("stray-cancel-is-reported", "aiometer"): "A task group treats a child's `CancelledError` as requested.",
    ("stray-cancel-is-reported", "AntFlow"): "The stream waits for the missing result.",
    ("job-raises-system-exit", ALL): "By design of asyncio: `SystemExit` propagates through a task and stops the loop.",
    ("context-leaks", ALL): "All jobs of a worker run in the context of the worker task.",
    ("submitters-context", "aiojobs"): "A waiting job runs in the context of the job before it.",
    ("own-timeout-error", ALL): "`asyncio.timeout` and `wait_for` raise a plain `TimeoutError` too.",
    ("kept-failures-hold-frames", "aiojobs"): "Raising the error several times loses the frames of the job.",
    (
        "kept-failures-hold-frames",
        ALL,
    ): "By design of Python: an exception keeps its traceback, and thereby its frames.",
    ("failure-leaves-orphans", "gather + Semaphore"): "By design: the other awaitables are not cancelled.",
    ("failure-leaves-orphans", "streamable"): "By design: the iteration can continue after an error.",
    ("break-leaves-orphans", "aiometer"): "Leaving the block waits for all tasks.",
    ("break-leaves-orphans", "asyncio-pool-ng"): "By design: leaving a pool waits for all its jobs.",
    ("slow-consumer", "aiometer"): "By design: its buffer is as long as its input list.",
    ("slow-consumer", "tasklane"): "Its queue of results is not bounded.",
    ("source-raises", "aqute"): "By design: the error cancels the jobs in progress.",
    ("source-raises", "aiostream"): "By design: the error propagates immediately.",
    ("reader-is-cancelled", ALL): "By design of Python: an async generator ends when its reader is cancelled.",
    ("timeout-is-reported", "pypeln"): "Its documentation says only that such a task is stopped.",
    ("all-results-come", "pypeln"): "Values are lost if `maxsize` is at most about `workers`, as in its README.",
    ("outer-timeout", "asyncio-pool-ng"): "By design: leaving a pool waits for all its jobs.",
    ("outer-timeout", "AntFlow"): "By design: a pipeline waits for its running jobs.",
    ("job-ignores-its-cancellation", ALL): (
        "By design of structured concurrency: a scope ends after everything in it. "
        "asyncpool abandons such a job after five seconds and logs its name."
    ),
    ("stop-ignored-by-a-job", "aqute"): "By design: handlers must cooperate.",
    ("stop-ignored-by-a-job", "aiojobs"): "After `close_timeout` it keeps waiting.",
    ("stop-ignored-by-a-job", "AntFlow"): "By design: a pipeline waits for its running jobs.",
    ("stop-wakes-all", "Queue workers"): "Emptying the queue admits two waiting jobs, which never run.",
    ("stop-wakes-all", "aiojobs"): "As with queue workers, in `close()`.",
    ("stop-wakes-all", "AntFlow"): "By design: running jobs are not cancelled.",
    ("caller-gives-up", "asyncio-pool-ng"): "Setting the result of a cancelled future cancels the pool.",
    ("woken-waiter-is-cancelled", "aiojobs"): "The cause is that of `burst-wedges`.",
    ("nowait-overtakes", "Queue workers"): "`put_nowait` takes the place for which a waiting `put` was woken.",
    ("own-full-pool", ALL): "Only asyncpool detects this deadlock.",
    ("burst-wedges", "aiojobs"): "A job queued just as the last running job ends never starts.",
    ("limit-0", ALL): "A semaphore of 0 is legal, and is never released.",
    ("limit-0", "pypeln"): "Undocumented: 0 workers mean no limit.",
    ("rate-in-a-burst", ALL): "By design: a leaky bucket lets a full bucket through at once, on top of the rate.",
    ("backoff-holds-the-worker", "aqute"): "By design: the delay occupies a worker.",
    ("backoff-holds-the-worker", "tasklane"): "By design: retries run inside a worker.",
    ("backoff-holds-the-worker", "AntFlow"): "By design: retries run inside a worker.",
}
