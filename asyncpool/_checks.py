"""The checks of what callers pass in: each says the rule and the value."""

from __future__ import annotations

import math

__all__ = ["check_count", "check_seconds"]


def check_count(name: str, value: object, *, least: int) -> int:
    """Return `value` if it is an int (not a bool) of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be >= {least}, got {value}")
    return value


def check_seconds(name: str, value: object, *, positive: bool = False) -> float:
    """Return `value` as float seconds if it is a finite number (not a bool), not negative (or above 0)."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds, got {value!r}")
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        raise ValueError(f"{name} must be a finite number of seconds {'> 0' if positive else '>= 0'}, got {value}")
    return float(value)
