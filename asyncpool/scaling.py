"""How many workers a pool has: the contract between a pool and a scaling policy, and its simplest case.

Pure: a policy sees numbers and answers with numbers. When it is asked, and what the answer does, the pool decides.
"""

from __future__ import annotations

from dataclasses import dataclass

from asyncpool._checks import check_count

__all__ = ["FixedSize"]


@dataclass(frozen=True, slots=True)
class FixedSize:
    """Always `workers` workers.

    Args:
        workers: How many; at least 1.

    Raises:
        TypeError: `workers` is not an int.
        ValueError: `workers` is below 1.
    """

    workers: int

    def __post_init__(self) -> None:
        check_count("workers", self.workers, least=1)

    @property
    def first(self) -> int:
        """How many workers the pool starts with."""
        return self.workers

    @property
    def most(self) -> int:
        """How many workers there may ever be."""
        return self.workers
