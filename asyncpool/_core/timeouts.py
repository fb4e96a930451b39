"""The timeout of one attempt, where a function of the job decides it.

Who enforces it is `invoke.py`; with an engine, `asyncpool/runner.py` in the process that runs the attempt.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeAlias

from asyncpool._checks import check_seconds
from asyncpool._guard import add_note, is_error
from asyncpool.errors import Permanent

__all__ = ["Timeout", "TimeoutFunction", "seconds_for"]

_IS_PART_OF_ATTEMPT = True  # so `failures.py` releases the frames of this module

TimeoutFunction: TypeAlias = "Callable[[object], float | None]"
Timeout: TypeAlias = "float | TimeoutFunction | None"


def seconds_for(timeout: TimeoutFunction, input: object) -> float | None:
    """Ask the user's function for the timeout of an attempt at this input, which is about to begin.

    Raises:
        Permanent: From what the function raised, or from the error for what it returned: the job must fail with that,
            and not be retried.
        KeyboardInterrupt: The function raised it.
    """
    try:
        seconds: object = timeout(input)
        if seconds is None:
            return None
        if inspect.iscoroutine(seconds):
            seconds.close()  # or it would warn that nobody awaited it
        return check_seconds("what timeout(job) returns", seconds, positive=True)
    except BaseException as error:
        if is_error(error, KeyboardInterrupt):
            raise
        add_note(error, "raised by the timeout function of the pool, before the attempt began")
        raise Permanent from error
