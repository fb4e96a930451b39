"""Reads and describes objects of the user without being hurt by what their methods raise.

A job, a value or an error can be of any class, so `__repr__`, `__str__`, `__class__`, `__getattribute__` and every
attribute of an error are code of the user. Here an error is classified by its real type, as `except` does it, and read
through the slots of `BaseException`, as the interpreter does it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from types import TracebackType
from typing import Any, TypeGuard, TypeVar

__all__ = [
    "add_note",
    "cause_of",
    "context_of",
    "describe",
    "errors_of_group",
    "fields_text",
    "is_error",
    "leaves_of",
    "name_of",
    "qualname_of",
    "safe_text",
    "set_cause",
    "set_context",
    "traceback_of",
]

ErrorT = TypeVar("ErrorT", bound=BaseException)

_MAX_TEXT = 4000
_type_slots: Any = vars(type)
_slots: Any = vars(BaseException)
_group_slots: Any = vars(BaseExceptionGroup)


# -- Texts -------------------------------------------------------------------------------------------------------------


def safe_text(text_of: Callable[[object], str], value: object, most: int = _MAX_TEXT) -> str:
    """Return the `str` or `repr` of any object: at most `most` characters, or a note if the call raised."""
    try:
        text = text_of(value)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return f"<{text_of.__name__}() of this {name_of(type(value))} raised {name_of(type(error))}>"
    # A slice is a plain str. The text can be an instance of a subclass, which could hold references to anything.
    is_short = str.__len__(text) <= most
    return str.__getitem__(text, slice(most)) if is_short else str.__getitem__(text, slice(most - 1)) + "…"


def describe(value: Any) -> str:
    """Return the `repr` of any object for an error message: short, or a note if it raised."""
    return safe_text(repr, value, 80)


def fields_text(value: Any) -> str:
    """Return the `repr` of a dataclass some of whose fields hold objects of the user."""
    described = (f"{field.name}={safe_text(repr, getattr(value, field.name))}" for field in fields(value))
    return f"{type(value).__qualname__}({', '.join(described)})"


def name_of(kind: type) -> str:
    """Return the name of a class, with its module: `ValueError`, `smtplib.SMTPServerDisconnected`."""
    name, module = qualname_of(kind), _type_slots["__module__"].__get__(kind)
    return name if type(module) is not str or module == "builtins" else f"{module}.{name}"


def qualname_of(kind: type) -> str:
    """Return the name of a class without its module, whatever its metaclass makes of that."""
    name: str = _type_slots["__qualname__"].__get__(kind)
    return name


# -- Errors ------------------------------------------------------------------------------------------------------------


def is_error(error: object, kind: type[ErrorT] | tuple[type[ErrorT], ...]) -> TypeGuard[ErrorT]:
    """Return whether an error is of a type, as `except` decides it: `isinstance` would also ask its `__class__`."""
    return issubclass(type(error), kind)


def cause_of(error: BaseException) -> BaseException | None:
    """Return the `__cause__` of any error."""
    cause: BaseException | None = _slots["__cause__"].__get__(error)
    return cause


def context_of(error: BaseException) -> BaseException | None:
    """Return the `__context__` of any error."""
    context: BaseException | None = _slots["__context__"].__get__(error)
    return context


def traceback_of(error: BaseException) -> TracebackType | None:
    """Return the `__traceback__` of any error. `BaseException.with_traceback(error, ...)` sets it."""
    traceback: TracebackType | None = _slots["__traceback__"].__get__(error)
    return traceback


def errors_of_group(error: BaseExceptionGroup[Any]) -> tuple[BaseException, ...]:
    """Return the errors in any exception group."""
    errors: tuple[BaseException, ...] = _group_slots["exceptions"].__get__(error)
    return errors


def leaves_of(error: BaseException) -> Iterator[BaseException]:
    """The errors in an exception group and in its groups, in order; of any other error, itself."""
    stack = [error]  # no recursion: groups can be nested more deeply than calls
    while stack:
        error = stack.pop()
        if is_error(error, BaseExceptionGroup):
            stack += reversed(errors_of_group(error))
        else:
            yield error


def set_cause(error: BaseException, cause: BaseException | None) -> None:
    """Set the `__cause__` of any error, also of one whose attributes cannot be set, such as a frozen dataclass."""
    _slots["__cause__"].__set__(error, cause)


def set_context(error: BaseException, context: BaseException | None) -> None:
    """Set the `__context__` of any error, also of one whose attributes cannot be set."""
    _slots["__context__"].__set__(error, context)


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an error, once: it may be one object that is raised again and again. Never raises."""
    try:
        try:
            notes: list[Any] = object.__getattribute__(error, "__notes__")
        except AttributeError:
            notes = []
        if type(notes) is list and not any(type(other) is str and other == note for other in notes):
            notes.append(note)
            BaseException.__setattr__(error, "__notes__", notes)
    except Exception:
        pass  # its class has a `__notes__` of its own: the note is a courtesy
