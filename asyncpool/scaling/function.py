"""`FunctionPolicy`: a plain function as a policy, with a maximum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from types import FunctionType

from asyncpool._checks import check_count, check_function, check_seconds, convert_field
from asyncpool._guard import describe
from asyncpool.scaling.policy import Decide, Decision, PoolLoad

__all__ = ["FunctionPolicy"]


@dataclass(frozen=True, slots=True)
class FunctionPolicy:
    """Has as many workers as a function of the load returns, up to a maximum.

    A pool also takes the function alone as `workers=`. Then it is capped at 1,000 workers, and everything that depends
    on the maximum (`queue_size`, when a wait is a deadlock) depends on the number that it returned last.

    Args:
        function: Takes the `PoolLoad`, and returns the target number of workers; at least 0. It is called on the loop
            of the pool, and must not block.
        max_workers: The maximum number of workers; at least 1. Numbers above it are capped.
        interval: Seconds between two calls, while the pool is active; above 0.

    Raises:
        TypeError, ValueError: An argument is not of its type or range; `function` is an async or a generator function.
    """

    function: Callable[[PoolLoad], int]
    max_workers: int
    _: KW_ONLY
    interval: float = 0.1

    def __post_init__(self) -> None:
        check_function("function", self.function)
        convert_field(self, "max_workers", check_count, least=1)
        convert_field(self, "interval", check_seconds, positive=True)

    @property
    def initial_workers(self) -> int:
        """How many workers a pool starts with: 1. The pool calls the function at once."""
        return 1

    def start(self) -> Decide:
        """Return a function that makes a decision of what the user's function returns."""
        function = self.function
        name = function.__qualname__ if type(function) is FunctionType else describe(function)
        reason = f"{name} returned this number"
        return lambda load: Decision(function(load), reason)
