"""The memory that this process holds, as the system counts it."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["most_resident", "resident"]


def resident() -> int:
    """Return the bytes of memory that the process holds now, or where that is unknown, the most it has ever held."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return most_resident()
    import resource

    return pages * resource.getpagesize()


def most_resident() -> int:
    """Return the most bytes of memory that the process has ever held."""
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
