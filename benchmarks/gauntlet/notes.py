"""What is to be said for a library, or to explain a cell: a footnote for a case and a library, or ("*") for the case.

Where a library documents what the case calls wrong, the note says "by design". Read in the versions of the saved
results; a note to a cell that is held is a mistake, and a test finds it.
"""

from __future__ import annotations

ALL = "*"

NOTES: dict[tuple[str, str], str] = {
    ("failure-is-told", "pypeln"): "A task that has failed is dropped before anybody looks at its error.",
    ("job-awaits-what-was-cancelled", "Queue workers"): (
        "`except Exception` does not catch it: the worker ends, its task group takes that for a cancellation that was "
        "asked for, and `join()` waits for a job that nobody takes."
    ),
    ("job-awaits-what-was-cancelled", "aqute"): (
        "By design: it tells this cancellation from its own, and fails the whole run, with a clear error."
    ),
    ("job-awaits-what-was-cancelled", "streamable"): "`catch` is for `Exception`; `CancelledError` is none.",
    ("stray-cancel-is-told", "gather + Semaphore"): "By design: the documentation of `asyncio.gather` says so.",
    ("stray-cancel-is-told", "aiometer"): (
        "A task group, of anyio as of asyncio, takes the end of a child by `CancelledError` for one that was asked for."
    ),
    ("job-raises-system-exit", ALL): "By design of asyncio: `SystemExit` goes through a task and ends the loop.",
    ("context-leaks", ALL): "The worker task has one context, and all its jobs run in it.",
    ("submitters-context", "aiojobs"): "A job that had to wait runs in the context of the one that ended before it.",
    ("own-timeout-error", ALL): "What `asyncio.timeout` and `wait_for` raise is a plain `TimeoutError` too.",
    (
        "kept-failures-hold-frames",
        "aiojobs",
    ): "It raises the error several times, which loses the frames of the job.",
    ("kept-failures-hold-frames", ALL): (
        "By design of Python: an exception keeps its traceback, and that its frames. No other library promises more."
    ),
    ("failure-leaves-orphans", "gather + Semaphore"): (
        "By design: the documentation says that the other awaitables are not cancelled."
    ),
    (
        "failure-leaves-orphans",
        "streamable",
    ): "By design: its documentation says that the iteration can go on after it.",
    ("break-leaves-orphans", "aiometer"): "Leaving the block waits for all its tasks, and cancels none.",
    ("break-leaves-orphans", "asyncio-pool-ng"): "By design: a pool that is left waits for all its jobs.",
    ("input-is-lazy", "asyncio-pool-ng"): "A job is spawned for each input at once.",
    ("slow-consumer", "aiometer"): "By design: its input is a list, and its buffer as long.",
    ("slow-consumer", "tasklane"): (
        "Its README promises bounded memory; its queue of inputs is bounded, that of results is not."
    ),
    ("source-raises", "aqute"): "By design: an error of the source cancels what was begun.",
    ("source-raises", "aiostream"): "Its documentation says that errors of the source are propagated: at once.",
    ("reader-is-cancelled", ALL): "By design of Python: an async generator ends where its reader is cancelled.",
    ("timeout-is-told", "pypeln"): "Its documentation says that such a task is stopped, and no more.",
    ("reader-is-cancelled", "aqute"): "By design: its documentation says that a cancelled reader ends the run.",
    ("all-results-come", "pypeln"): (
        "Happens with `maxsize` up to about as many as `workers` (its README shows 4 and 3); with twice as many, none "
        "were lost."
    ),
    ("outer-timeout", "asyncio-pool-ng"): "By design: a pool that is left waits for all its jobs, also if cancelled.",
    ("job-ignores-its-cancellation", "aqute"): "By design: its documentation says that handlers must cooperate.",
    ("job-ignores-its-cancellation", ALL): (
        "By design of structured concurrency, where a scope ends after all in it. Who holds, abandons the job: "
        "asyncpool five seconds after its pool began to close, with its name in the log (while a pool lives on, who "
        "leaves such a job waits for it for five seconds); the others at once."
    ),
    ("stop-ignored-by-a-job", "aqute"): "By design: its documentation says that handlers must cooperate.",
    ("stop-ignored-by-a-job", "aiojobs"): ("`close_timeout` only cancels the task once more, and waits on for it."),
    ("stop-wakes-all", "Queue workers"): (
        "Two waited for room in `put()`; when the queue is emptied they put their jobs, and nobody takes them."
    ),
    ("stop-wakes-all", "aiojobs"): "The same: two waited for room when `close()` emptied its queue.",
    ("caller-gives-up", "asyncio-pool-ng"): (
        "A timeout around its future cancels it; setting its result then fails, and that failure cancels the pool."
    ),
    ("woken-waiter-is-cancelled", "aiojobs"): "As in `burst-wedges`.",
    (
        "nowait-overtakes",
        "Queue workers",
    ): "`put_nowait` of `asyncio.Queue` takes the room that a waiting `put` was woken for.",
    ("own-full-pool", ALL): "Nobody else looks for this deadlock, nor promises to.",
    ("burst-wedges", "aiojobs"): (
        "A job that was let into the queue just when the last running one ended is never started."
    ),
    ("limit-0", ALL): "Most have a semaphore of 0, which is legal, and waits for a release that never comes.",
    ("limit-0", "pypeln"): "No workers are taken for no limit; the documentation of `map` does not say so.",
    ("rate-in-a-burst", "aiolimiter"): (
        "By design: a leaky bucket lets a full bucket through at once, on top of the rate; its documentation says so."
    ),
    ("backoff-holds-the-worker", "aqute"): "By design: its documentation says that the delay occupies a worker.",
    (
        "backoff-holds-the-worker",
        "tasklane",
    ): "By design: its documentation says that retries are done inside a worker.",
}
