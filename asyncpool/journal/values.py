"""Pickles the values that a journal keeps, and unpickles them. Both can call code of the user, so both are guarded."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from asyncpool._guard import is_error
from asyncpool._logs import log

__all__ = ["pickled", "unpickled"]

_PROTOCOL = 5


def pickled(value: object, where: str, interrupted: Callable[[BaseException], object]) -> bytes | None:
    """Return a pickle of a value; None if it cannot be pickled, which is logged.

    Its job is done all the same. A run that wants the values runs it again. A KeyboardInterrupt goes to `interrupted`.
    """
    try:
        return pickle.dumps(value, _PROTOCOL)
    except BaseException as error:
        log.error(
            "%s: a value cannot be pickled, so a later run that needs it runs the job again: %r",
            where,
            value,
            exc_info=error,
        )
        if is_error(error, KeyboardInterrupt):
            interrupted(error)
        return None


def unpickled(data: bytes | None, where: str) -> Any:
    """Return the value of a pickle. Raises ValueError, and logs why, if it cannot be read."""
    try:
        return pickle.loads(data or b"")
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        log.error("%s: a recorded value cannot be unpickled, so its job runs again", where, exc_info=error)
        raise ValueError from error
