"""`Envelope`: sends an object to another process, so that only its own job fails if it cannot be pickled or unpickled.

An executor of processes unpickles calls and results outside of any job. An error there breaks the executor, with all
jobs that are in it.
"""

from __future__ import annotations

import pickle
from typing import Any

from asyncpool._guard import name_of, safe_text

__all__ = ["Envelope", "Undelivered"]


class Undelivered:
    """What arrives in place of an object that could not be pickled or unpickled."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def as_error(self) -> pickle.PickleError:
        """Return an error that says what did not arrive, and why."""
        return pickle.PickleError(self._text)


class Envelope:
    """An object to be pickled by an executor of processes. What arrives is the object, or an `Undelivered`."""

    __slots__ = ("_content", "_name")

    def __init__(self, content: object, name: str) -> None:
        self._content = content
        self._name = name

    def __reduce__(self) -> tuple[Any, ...]:
        # As the executor would pickle it: with what multiprocessing and its users have registered.
        from multiprocessing.reduction import ForkingPickler

        try:
            return _open, (bytes(ForkingPickler.dumps(self._content)), self._name)
        except Exception as error:
            return Undelivered, (_undelivered(self._name, "pickling", error),)


def _open(data: bytes, name: str) -> Any:
    try:
        return pickle.loads(data)
    except BaseException as error:  # SystemExit too: here it would end the thread that reads all results
        return Undelivered(_undelivered(name, "unpickling", error))


def _undelivered(name: str, step: str, error: BaseException) -> str:
    said = safe_text(str, error, 500)
    return f"{name} cannot be sent to another process: {step} it raised {name_of(type(error))}: {said}"
