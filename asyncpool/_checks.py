"""Checks of arguments. Each error states the rule and the value that broke it."""

from __future__ import annotations

import functools
import inspect
import math
import operator
from collections.abc import Callable
from decimal import Decimal
from numbers import Real
from typing import Any, SupportsFloat, SupportsIndex, cast

from asyncpool._guard import describe

__all__ = [
    "check_count",
    "check_delay",
    "check_filter",
    "check_function",
    "check_number",
    "check_seconds",
    "convert_field",
    "is_async_function",
    "is_generator_function",
]


def check_count(name: str, value: object, *, least: int) -> int:
    """Return `value` as an int if it is an integer (anything with `__index__`, but not a bool) of at least `least`.

    Otherwise raise TypeError or ValueError.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        count = operator.index(cast("SupportsIndex", value))
    except Exception:
        raise TypeError(f"{name} must be an int, got {describe(value)}") from None
    if count < least:
        raise ValueError(f"{name} must be >= {least}, got {describe(value)}")
    return count


def check_seconds(name: str, value: object, *, positive: bool = False) -> float:
    """Return `value` as float seconds if it is a finite real number that is >= 0 (or > 0, if `positive`)."""
    return check_number(name, value, above=positive, what="number of seconds")


def check_delay(name: str, value: object) -> float:
    """Return `value` as float seconds to wait if it is a finite real number: 0 if it is negative."""
    return max(0.0, check_number(name, value, least=-math.inf, what="number of seconds"))


def check_number(name: str, value: object, *, least: float = 0.0, above: bool = False, what: str = "number") -> float:
    """Return `value` as a float if it is a finite real number that is >= `least` (or > it, if `above`).

    A real number is what is registered as `numbers.Real` (int, float, Fraction, the numbers of numpy), and a Decimal.
    A bool is not. Otherwise raise TypeError or ValueError.
    """
    if isinstance(value, bool) or not isinstance(value, (Real, Decimal)):
        raise TypeError(f"{name} must be a {what}, got {describe(value)}")
    number = _as_float(value)
    if not math.isfinite(number) or number < least or (above and number == least):
        rule = f" {'>' if above else '>='} {least:g}" if least > -math.inf else ""
        raise ValueError(f"{name} must be a finite {what}{rule}, got {describe(value)}")
    return number


def _as_float(value: object) -> float:
    try:
        return float(cast("SupportsFloat", value))
    except Exception:  # too large for a float, or a Decimal that signals
        return math.nan


def convert_field(owner: object, name: str, check: Callable[..., object], **rule: Any) -> None:
    """Check a field of a frozen dataclass, and keep the int or float that it stands for."""
    value = getattr(owner, name)
    checked = check(name, value, **rule)
    if type(value) not in (int, float):
        object.__setattr__(owner, name, checked)


def check_filter(name: str, value: object) -> None:
    """Raise TypeError unless `value` selects errors: an exception type, a tuple of them, or a predicate."""
    kinds = cast("tuple[object, ...]", value) if isinstance(value, tuple) else (value,)
    if all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
        return
    if isinstance(value, (type, tuple)) or not callable(value):
        raise TypeError(f"{name} must be an exception type, a tuple of them, or a predicate, got {describe(value)}")
    check_function(name, value)


def check_function(name: str, value: object) -> None:
    """Raise TypeError unless `value` is callable, and calling it runs it: no async function, and no generator."""
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {describe(value)}")
    if is_async_function(value):
        raise TypeError(f"{name} is called and not awaited, so it must not be an async function, got {describe(value)}")
    if is_generator_function(value):
        raise TypeError(
            f"{name} must not be a generator function, because calling one does not run it, got {describe(value)}"
        )


def is_async_function(value: object) -> bool:
    """Return whether calling `value` only makes a coroutine: an async function, or an object with such a `__call__`."""
    return any(inspect.iscoroutinefunction(called) for called in _called(value))


def is_generator_function(value: object) -> bool:
    """Return whether calling `value` only makes a generator, sync or async."""
    return any(inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called) for called in _called(value))


def _called(value: object) -> tuple[object, object]:
    """Return what runs when an object is called: itself, or the `__call__` of its class."""
    while isinstance(value, functools.partial):
        value = cast("functools.partial[object]", value).func
    kind: type[object] = type(value)
    return value, getattr(kind, "__call__", None)  # noqa: B004  # to look at it
