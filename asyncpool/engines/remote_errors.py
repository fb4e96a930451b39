"""Sends errors to another process so that their types arrive, for `except` and for `Retry.on`.

An error may hold what cannot be pickled, or be pickled in a way that cannot be read again. So it is read again where it
was raised, and what fails that is sent by its parts, and at worst as text.
"""

from __future__ import annotations

import asyncio
import pickle
import traceback
from typing import Any

from asyncpool._guard import (
    add_note,
    cause_of,
    context_of,
    errors_of_group,
    is_error,
    name_of,
    safe_text,
    set_cause,
)
from asyncpool.engines.wire import dumps, loads
from asyncpool.errors import RemoteError

__all__ = ["dump_error", "load_error"]

_MAX_TEXT = 20_000
_MAX_CAUSES = 20


def dump_error(error: BaseException, place: str, *, shares_main: bool) -> bytes:
    """Return the bytes of an error that was raised in the process `place`, with its causes. Never raises."""
    where = _traceback_text(error)
    try:
        packed = _pack(error, shares_main, _MAX_CAUSES)
    except BaseException:  # by a way that nobody has thought of: the attempt has an end all the same
        packed = (None, name_of(type(error)), "", None, None)
    return pickle.dumps((packed, where, place), 5)


def load_error(data: bytes) -> BaseException:
    """Return the error, with a note that has its traceback. Never raises."""
    packed, where, place = loads(data)
    error = _unpack(packed, where)
    add_note(error, f"Raised in {place}:\n{where}")
    return error


def _pack(error: BaseException, shares_main: bool, depth: int) -> tuple[Any, ...]:
    """Return the error's bytes or None, its name and text, its cause, and the errors in it if it is a group."""
    cause = cause_of(error)
    packed_cause = None if cause is None or depth <= 0 else _pack(cause, shares_main, depth - 1)
    members = None
    if is_error(error, BaseExceptionGroup) and depth > 0:
        members = [_pack(member, shares_main, depth - 1) for member in errors_of_group(error)]
    kind = name_of(type(error))
    for take_apart in (_as_it_pickles, _by_its_parts):
        try:
            data = dumps(take_apart(error), shares_main=shares_main)
            if type(_put_together(loads(data))) is type(error):
                return data, kind, _text_of(error), packed_cause, members
        except BaseException:  # a KeyboardInterrupt, too: in this process nobody presses Ctrl+C
            continue  # the next way, or at last as text
    return None, kind, _text_of(error), packed_cause, members


def _unpack(packed: tuple[Any, ...], where: str) -> BaseException:
    data, kind, text, packed_cause, members = packed
    error: BaseException | None = None
    if data is not None:
        try:
            error = _put_together(loads(data))
        except (Exception, SystemExit, GeneratorExit, asyncio.CancelledError):
            error = None  # its class is not here, or raises something that would be taken for what the job has raised
    if error is None and members:
        errors = [_unpack(member, where) for member in members]
        error = BaseExceptionGroup(text.rpartition(" (")[0] or text, errors)
    if error is None or not is_error(error, BaseException):
        error = RemoteError(kind, text, where)
    if packed_cause is not None:
        set_cause(error, _unpack(packed_cause, where))
    return error


def _as_it_pickles(error: BaseException) -> tuple[Any, ...]:
    # Not pickle itself: tblib, which Dask installs, replaces the pickling of all errors, and loses what C types hold
    # (SystemExit.code, UnicodeError.reason).
    reduced: Any = error.__reduce_ex__(5)
    make, args, state = (*reduced, None)[:3]
    return make, args, state


def _by_its_parts(error: BaseException) -> tuple[Any, ...]:
    """For those whose `__init__` takes something else than their `args`, and those that hold what cannot be sent."""
    state = {name: _sendable(value) for name, value in vars(error).items()}
    return type(error).__new__, (type(error), *map(_sendable, error.args)), state


def _put_together(parts: tuple[Any, ...]) -> BaseException:
    make, args, state = parts
    error: BaseException = make(*args)
    if state:
        error.__setstate__(state)
    return error


def _sendable(value: object) -> object:
    try:
        loads(dumps(value, shares_main=True))
    except Exception:
        return f"<{name_of(type(value))} that cannot be sent>"
    return value


def _text_of(error: BaseException) -> str:
    try:
        return safe_text(str, error)
    except KeyboardInterrupt:
        return "<its text raises KeyboardInterrupt>"


def _traceback_text(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))[-_MAX_TEXT:]
    except BaseException:  # it asks the errors for their texts
        chain = f"{name_of(type(error))}: {_text_of(error)}"
        context = context_of(error)
        return chain if context is None else f"{chain} (while {name_of(type(context))} was handled)"
