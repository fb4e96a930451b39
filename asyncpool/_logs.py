"""How the package logs: one logger, and one rule for messages that could come by the thousand."""

from __future__ import annotations

import logging

__all__ = ["is_logged", "log"]

log = logging.getLogger("asyncpool")


def is_logged(count: int) -> bool:
    """Return whether an occurrence is logged, by its number: the 1st, 2nd, 4th, 8th ... is."""
    return count & (count - 1) == 0
