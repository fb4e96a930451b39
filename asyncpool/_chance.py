"""The random numbers of all pools in a process, for jitter."""

from __future__ import annotations

import os
from random import Random

__all__ = ["chance"]

chance = Random()
"""Seeded by the operating system, and again in each fork, so that no two processes move in step.

It is not the generator of the module `random`: many programs seed that, each of their processes with the same number.
"""

if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=chance.seed)
