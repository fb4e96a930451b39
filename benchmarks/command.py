"""Exit statuses of the commands, including Ctrl+C and a closed standard output."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def finish(main: Callable[[], int]) -> int:
    """Run a command and return its exit status: 130 after Ctrl+C, 1 if standard output was closed."""
    try:
        status = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Discards what Python still writes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status
