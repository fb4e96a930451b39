"""The policies that are compared."""

from __future__ import annotations

from dataclasses import dataclass

from asyncpool import Adaptive, AutoScale
from benchmarks.scaling.rivals import RIVALS
from benchmarks.scaling.simulate import Policy, Scenario

__all__ = ["ADAPTIVE", "Contender", "contenders", "rivals"]


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy, its name in the tables, and whether it must find the capacity, so that the goals apply to it."""

    name: str
    policy: Policy
    finds_capacity: bool = False


ADAPTIVE = Contender("Adaptive(1, 200)", Adaptive(1, 200), finds_capacity=True)


def contenders(scenario: Scenario) -> tuple[Contender, ...]:
    """Return the policies of the report. AutoScale knows of the capacity only the maximum that it is given."""
    most = scenario.max_workers
    return Contender(f"AutoScale(2, {most})", AutoScale(2, most)), ADAPTIVE


def rivals() -> tuple[Contender, ...]:
    """Return Adaptive, and the published algorithms that it is compared with."""
    return ADAPTIVE, *(Contender(rival.__name__, rival(1, 200)) for rival in RIVALS)
