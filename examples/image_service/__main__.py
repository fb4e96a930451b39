"""`python -m examples.image_service`: see `command.py`."""

from __future__ import annotations

import sys

from examples.command_line import start

if __name__ == "__main__":
    sys.exit(start("image_service"))
