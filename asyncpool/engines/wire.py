"""What travels between the program and its processes, as bytes: the spec of a pool, orders, news, inputs and values.

Each input, value and error is pickled by itself, so what cannot be pickled, or not be read at the other end, fails
alone. Errors are `remote_errors.py`.
"""

from __future__ import annotations

import pickle
import sys
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from asyncpool._guard import name_of, safe_text
from asyncpool._version import __version__
from asyncpool.resources import Resource

__all__ = [
    "BATCH_BYTES",
    "BROKEN",
    "CANCEL",
    "CANCELLED",
    "ERROR",
    "FAULT",
    "LEFT",
    "LOG",
    "OPENED",
    "READY",
    "REPLACED",
    "SHARE",
    "START",
    "STUCK",
    "TICK",
    "VALUE",
    "WAITING",
    "Spec",
    "dumps",
    "load_value",
    "loads",
    "pack_spec",
    "unpack_spec",
]

# Orders, from the program to a process.
START, CANCEL, SHARE = range(3)
"""(START, id, number of the job, attempt, seconds left, timeout, carried, input), (CANCEL, id), (SHARE, workers)."""
# News, from a process to the program.
VALUE, ERROR, CANCELLED, READY, WAITING, BROKEN, LOG, FAULT, OPENED, LEFT, STUCK, REPLACED = range(12)
"""The end of an attempt: (VALUE, id, value, seconds), (ERROR, id, error, seconds), (CANCELLED, id, whether it had
started, seconds). All others are (kind, 0, content, 0.0), with the content:

* READY, WAITING: None. A worker can run attempts; none can until its resource is open.
* BROKEN: an error. The process cannot run the handler.
* LOG: the attributes of a record.
* FAULT: (worker, error, seconds until the next try or None, whether the resource was abandoned).
* OPENED, LEFT: a worker that had a FAULT. Its resource is open; it does not try again.
* STUCK: the id of an attempt that ignores its cancellation.
* REPLACED: (worker, reason). Its resource is closed by plan.
"""

BATCH_BYTES = 8 << 20
"""About how many bytes of inputs or values one batch holds at most."""

TICK = 3.0
"""Seconds after which a process that has nothing to tell gives a sign of life, if nobody asks for another time."""

loads = pickle.loads


@dataclass(frozen=True, slots=True)
class Spec:
    """What a process has to know of a pool: what surrounds one attempt."""

    pool: str
    handler: Any
    timeout: float | None
    max_elapsed: float | None
    resource: Resource[Any] | None
    shares_main: bool
    tick: float
    """Seconds after which a process that has nothing to tell gives a sign of life."""
    timeout_varies: bool = False
    """Whether each attempt brings its own timeout: then `timeout` is None."""


# Of a function that travels by value it is the code that does, which is another one in each Python.
_VERSIONS = "Python {}.{}".format(*sys.version_info) + f" and asyncpool {__version__}"


@cache
def find_cloudpickle() -> Any:
    """Return the module cloudpickle; None if it is not installed."""
    try:
        return import_module("cloudpickle")  # like this, the type checkers do not look for its types
    except ModuleNotFoundError:
        return None


def dumps(value: object, *, shares_main: bool) -> bytes:
    """Pickle a value; with cloudpickle what pickle cannot, if that is installed.

    So also what is defined in the program's main module, if that is another one at the other end.
    """
    try:
        data = pickle.dumps(value, 5)
    except Exception:
        if find_cloudpickle() is None:
            raise
    else:
        if shares_main or b"__main__" not in data or find_cloudpickle() is None:
            return data
    by_value: bytes = find_cloudpickle().dumps(value, 5)
    return by_value


def load_value(data: bytes, what: str) -> Any:
    """Read a value that another process sent.

    Raises:
        PickleError: It cannot be read here.
    """
    try:
        return loads(data)
    except Exception as error:
        raise pickle.UnpicklingError(
            f"{what} cannot be unpickled in the process that received it: "
            f"{name_of(type(error))}: {safe_text(str, error, 500)}"
        ) from error


def pack_spec(spec: Spec) -> bytes:
    """Return the bytes of a spec.

    Raises:
        TypeError: Its handler or resource, with `check` and `recycle_on`, cannot be sent to another process.
    """
    try:
        data = dumps(spec, shares_main=spec.shares_main)
    except Exception as error:
        hint = (
            ""
            if find_cloudpickle()
            else ", or install cloudpickle, which can send lambdas, closures and notebook cells"
        )
        raise TypeError(
            "handler, resource, check and recycle_on must be picklable, because they are sent to other processes: "
            f"pickling them raised {name_of(type(error))}: {safe_text(str, error, 500)}. "
            f"Use functions and classes that are defined at the top level of a module{hint}"
        ) from error
    return pickle.dumps((_VERSIONS, data), 5)


def unpack_spec(data: bytes, place: str) -> Spec:
    """Read a spec in the process `place`.

    Raises:
        RuntimeError: It comes from another version of Python or asyncpool.
        Exception: What importing the modules of the handler raises.
    """
    versions, inner = loads(data)
    if versions != _VERSIONS:
        raise RuntimeError(f"{place} has {_VERSIONS}, and the program has {versions}: both need the same versions")
    spec: Spec = loads(inner)
    return spec
