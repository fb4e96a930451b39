"""How the commands here end: with their exit status, also after Ctrl+C and when nobody reads their lines any more."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def finish(main: Callable[[], int]) -> int:
    """Run it and return its exit status: 130 after Ctrl+C, 1 if whoever read its lines had enough of them."""
    try:
        status = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # What Python would still write at its exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status
